"""Tests of the control plane as the program is wired: registry, keys, listeners."""

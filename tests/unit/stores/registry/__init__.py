"""Tests of what registries of every store share."""

"""Unit tests of sidecar.services."""

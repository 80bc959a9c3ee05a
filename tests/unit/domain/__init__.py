"""Unit tests of sidecar.domain."""

"""Unit tests of sidecar.stores."""

"""Verifies that a suspension is instant: no sidecar admits a request that is sent after its commit."""

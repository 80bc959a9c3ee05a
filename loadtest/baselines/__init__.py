"""Straightforward servers for the same task, as baselines for Sidecar's figures."""

"""Straightforward servers that do the same job, to hold Sidecar's figures against."""

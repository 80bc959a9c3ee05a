"""The registry in one SQLite file: for a sidecar of its own, with nothing else to run."""

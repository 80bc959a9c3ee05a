"""The registry in one SQLite file, for sidecars on one machine without a shared store."""

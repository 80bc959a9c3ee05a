"""What the outside sees of a running sidecar: every metric in one table, structured logs."""

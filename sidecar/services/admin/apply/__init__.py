"""Make a registry hold what a file declares: compare, apply in batches, report the result."""

"""Benchmarks: each compares two programs in one run, on the same cores, and reports the ratio."""

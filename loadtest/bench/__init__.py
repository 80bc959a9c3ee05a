"""Benchmarks: each compares two things in one run, on the same cores, and reports the ratio."""

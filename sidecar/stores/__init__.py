"""Bucket stores and registries, embedded and shared, and their protocols."""

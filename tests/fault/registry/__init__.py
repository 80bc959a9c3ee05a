"""Processes that die while they write to the registry."""

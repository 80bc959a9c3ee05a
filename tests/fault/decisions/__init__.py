"""Decisions of a whole sidecar while its store fails in every way."""

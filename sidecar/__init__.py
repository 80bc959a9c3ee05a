"""Sidecar: a rate-limit and auth decision service for API proxies."""

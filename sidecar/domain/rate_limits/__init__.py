"""Envoy's global rate limits: rules by descriptor, counters, and the answer to a ShouldRateLimit call."""

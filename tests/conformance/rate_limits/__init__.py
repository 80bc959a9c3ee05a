"""Envoy's rate-limit service against the recorded answers of envoyproxy/ratelimit."""

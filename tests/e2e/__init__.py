"""Whole programs: the real command, a real Envoy with the configurations of deploy/envoy/, a real API."""

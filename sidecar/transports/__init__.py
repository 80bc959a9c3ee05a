"""Sockets and wire: listeners and the two gRPC servers that run the same handlers."""

"""Listeners, the HTTP/1.1 server, and the two gRPC servers, which run the same handlers."""

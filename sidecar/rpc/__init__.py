"""The interface between transports and services: gRPC calls and event-loop turns, without sockets."""

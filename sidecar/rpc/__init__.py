"""The seam between transports and services: gRPC calls and turns of the loop, without any wire or socket."""

"""The seam between transports and services: what a gRPC call is, without any wire or socket."""

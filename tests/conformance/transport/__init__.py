"""One suite over both gRPC transports: what any client may rely on, whichever of the two serves it."""

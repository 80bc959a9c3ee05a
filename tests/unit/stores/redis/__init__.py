"""The parts of the Redis store, each without a server."""

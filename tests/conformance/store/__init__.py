"""One contract for every bucket store, and what stores that share a Redis promise together."""

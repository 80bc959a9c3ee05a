"""Several implementations of one thing, driven side by side."""

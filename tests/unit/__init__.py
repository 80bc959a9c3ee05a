"""Unit tests: one unit, no socket, no sleep."""

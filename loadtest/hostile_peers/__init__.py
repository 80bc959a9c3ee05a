"""Proves that hostile peers of any listener slow down no decision, hold no memory and keep nobody out."""

"""Measures what clients see while a primary of the store dies under load and a replica takes its place."""

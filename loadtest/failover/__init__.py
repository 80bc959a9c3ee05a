"""Measures what clients see while a primary of the store fails under load and a replica is promoted."""

"""Stores whose primary dies under load."""

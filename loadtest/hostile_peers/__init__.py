"""Verifies that hostile peers do not slow decisions down, exhaust memory or lock administrators out."""

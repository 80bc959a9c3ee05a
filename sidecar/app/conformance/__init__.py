"""Proves, against real sidecars under load, that a fleet admits what its limits say: no more, and no less."""

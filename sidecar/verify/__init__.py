"""
Proves, against real sidecars under load, that a fleet admits what its limits say: no more, and no less.

A program of its own behind `sidecar verify-limits`; the sidecar that decides never imports it.
"""

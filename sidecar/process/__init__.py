"""
The process: configuration, wiring, run, readiness and drain; `supervisor/` runs several worker processes.
"""

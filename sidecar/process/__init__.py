"""
The process: configuration, wiring of the graph, run, readiness and drain; `supervisor/` runs several.

May import every room below it, and none of the rooms of the command line.
"""

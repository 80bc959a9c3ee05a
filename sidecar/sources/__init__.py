"""Parsing configuration files: YAML nodes with positions and bounds, typed fields, and mistakes."""

"""
Reading sources of configuration: YAML nodes with positions, bounds, fields, and what a read error means.

Knows the domain alone. What a file's content means to a registry or to the process lives there.
"""

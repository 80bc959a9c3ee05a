"""The registry in a YAML file: its records, and reading them."""

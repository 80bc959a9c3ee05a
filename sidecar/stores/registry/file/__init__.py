"""The registry in a YAML file: parsing and writing its records."""

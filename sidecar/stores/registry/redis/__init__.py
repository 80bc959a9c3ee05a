"""The registry in Redis, for a fleet of sidecars on any number of machines."""

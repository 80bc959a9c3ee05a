"""What remembers: bucket stores and registries, their protocols, embedded and shared."""

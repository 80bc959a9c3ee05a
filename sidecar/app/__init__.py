"""Settings, wiring, the life of the process and the command line."""

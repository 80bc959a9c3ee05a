"""A client of the admin API, for the command line: bounded in time and memory, safe to repeat."""

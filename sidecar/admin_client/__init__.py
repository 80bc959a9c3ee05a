"""A client of the admin API for the command line, with bounds on time and memory, and safe retries."""

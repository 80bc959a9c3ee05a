"""Faults and abuse: every bound of the program, reached."""

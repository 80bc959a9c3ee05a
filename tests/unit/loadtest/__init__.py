"""Unit tests of the programs that prove promises under load."""

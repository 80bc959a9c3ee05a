"""Unit tests of the program that proves limits."""

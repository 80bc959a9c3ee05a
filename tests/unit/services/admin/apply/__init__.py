"""Tests of making a registry hold what a file declares."""

"""Tests of reading sources of configuration."""

"""Tests of the supervisor and its workers, each part by itself."""

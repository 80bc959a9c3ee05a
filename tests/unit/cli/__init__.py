"""Tests of the administrators' command line, against the real admin API on a real socket."""

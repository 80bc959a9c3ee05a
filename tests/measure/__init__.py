"""Measurements that take too long for the suite; the Makefile runs them."""

"""The admin API over a real registry file; the wire is in test_wire.py."""

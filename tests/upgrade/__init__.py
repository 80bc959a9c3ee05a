"""Upgrade and rollback between a former build of this repository and this one."""

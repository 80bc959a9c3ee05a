"""Registries: stores of integrations, administrators and the audit log."""

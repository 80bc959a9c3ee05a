"""The registry: integrations, administrators and the audit log, as stores keep them."""

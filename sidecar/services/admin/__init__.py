"""The admin API: everything that administrators do to integrations, as REST under /v1."""

"""Messages and client stubs of sidecar.v1, generated from proto/ by `make proto`; edit those files."""

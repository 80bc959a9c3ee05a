"""The load-test harness: verifies Sidecar's claims through its public protocols."""

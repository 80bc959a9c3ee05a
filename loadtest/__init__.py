"""The load-test harness: measures what Sidecar claims, through the protocols its users speak."""

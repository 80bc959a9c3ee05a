"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test judges speed: a busy machine must not turn a property into a failure. Failures print how to
# run the same example again.
settings.register_profile(
    "sidecar", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("sidecar")

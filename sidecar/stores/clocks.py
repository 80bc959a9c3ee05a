"""The clocks of this machine: one that tells the time, and one that nobody can set."""

from __future__ import annotations

import time

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux counts the time that the machine was suspended: a client that waited meanwhile has waited."""

_EPOCH_NS = time.time_ns() - time.clock_gettime_ns(_STEADY)


def wall_clock_us() -> int:
    """Microseconds since the epoch by the system's clock, which may be set forward and back."""
    return time.time_ns() // 1_000


def steady_clock_us() -> int:
    """
    Microseconds since the epoch as the system's clock told them when this process began, and counted since.

    It never steps: once the system's clock was set, the two differ by that step.
    """
    return (time.clock_gettime_ns(_STEADY) + _EPOCH_NS) // 1_000

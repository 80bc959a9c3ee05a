"""
The circuit breaker of one node: after `failures_max` consecutive failures takes are refused at once.

    closed ──failures_max failures in a row──> open ──probe_after_s──> half-open
      ^                                         ^                          │
      └───────────── probe answered in time ────┴──── probe failed ────────┘

The caller reports events and their times; the breaker reads no clock and sends nothing. The probe is
a separate command, not a caller's take.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class BreakerState(Enum):
    """CLOSED lets all takes through, OPEN none, and HALF_OPEN only the probe that is in flight."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """
    Counts consecutive failures.

    `probe_at_s` is when the next probe is due; infinity unless the breaker is open.
    """

    __slots__ = ("_failures", "_failures_max", "_jitter", "_probe_after_s", "probe_at_s", "state")

    def __init__(
        self, failures_max: int = 3, probe_after_s: float = 0.2, jitter: Callable[[], float] = lambda: 1.0
    ) -> None:
        """
        Start closed.

        *jitter* returns a factor around 1 for each wait, so that sidecars do not probe at the same time.
        """
        self._failures_max = failures_max
        self._probe_after_s = probe_after_s
        self._jitter = jitter
        self._failures = 0
        self.state = BreakerState.CLOSED
        self.probe_at_s = float("inf")

    def fail(self, now_s: float) -> bool:
        """Count a call that timed out or that the node could not serve; True = the breaker opens."""
        if self.state is not BreakerState.CLOSED:
            return False
        self._failures += 1
        if self._failures < self._failures_max:
            return False
        self._open(now_s)
        return True

    def succeed(self) -> None:
        """Count a call that was answered in time. Ignored while open, because the call is an old one."""
        if self.state is BreakerState.CLOSED:
            self._failures = 0

    def probe_now(self, now_s: float) -> None:
        """Probe at once, because the node has answered, though too late."""
        if self.state is BreakerState.OPEN:
            self.probe_at_s = now_s

    def begin_probe(self) -> None:
        """Record that the probe was sent."""
        self.state = BreakerState.HALF_OPEN
        self.probe_at_s = float("inf")

    def end_probe(self, is_good: bool, now_s: float) -> None:
        """Record whether the probe was answered in time."""
        if self.state is not BreakerState.HALF_OPEN:
            return
        if is_good:
            self.reset()
        else:
            self._open(now_s)

    def reset(self) -> None:
        """Close the breaker after a successful probe or handshake."""
        self.state = BreakerState.CLOSED
        self.probe_at_s = float("inf")
        self._failures = 0

    def _open(self, now_s: float) -> None:
        self.state = BreakerState.OPEN
        self.probe_at_s = now_s + self._probe_after_s * self._jitter()

"""
The circuit breaker of one node: after a few failures in a row nobody waits for it any more.

    closed ──failures_max failures in a row──> open ──probe_after_s──> half-open
      ^                                         ^                          │
      └───────────── probe answered in time ────┴──── probe failed ────────┘

The breaker is told what happened and when; it reads no clock and starts nothing itself. The probe is
a command of its own, never somebody's decision.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class BreakerState(Enum):
    """What the breaker lets through: everything, nothing, or one probe that is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """
    Counts failures in a row.

    `probe_at_s` is when the next probe is due, infinity unless open.
    """

    __slots__ = ("_failures", "_failures_max", "_jitter", "_probe_after_s", "probe_at_s", "state")

    def __init__(
        self, failures_max: int = 3, probe_after_s: float = 0.2, jitter: Callable[[], float] = lambda: 1.0
    ) -> None:
        """
        Begin closed.

        *jitter* returns a factor around 1 for each wait, so that a fleet does not probe in step.
        """
        self._failures_max = failures_max
        self._probe_after_s = probe_after_s
        self._jitter = jitter
        self._failures = 0
        self.state = BreakerState.CLOSED
        self.probe_at_s = float("inf")

    def fail(self, now_s: float) -> bool:
        """A call was not answered in time, or the node could not; True = it has opened just now."""
        if self.state is not BreakerState.CLOSED:
            return False
        self._failures += 1
        if self._failures < self._failures_max:
            return False
        self._open(now_s)
        return True

    def succeed(self) -> None:
        """A call was answered in time. While open this proves nothing: the call is an old one."""
        if self.state is BreakerState.CLOSED:
            self._failures = 0

    def probe_now(self, now_s: float) -> None:
        """The node gave a sign of life, though too late: probe at once."""
        if self.state is BreakerState.OPEN:
            self.probe_at_s = now_s

    def begin_probe(self) -> None:
        """The probe has been sent."""
        self.state = BreakerState.HALF_OPEN
        self.probe_at_s = float("inf")

    def end_probe(self, is_good: bool, now_s: float) -> None:
        """The probe was answered in time, or not."""
        if self.state is not BreakerState.HALF_OPEN:
            return
        if is_good:
            self.reset()
        else:
            self._open(now_s)

    def reset(self) -> None:
        """Close: the node has just proved itself, by a probe or by a whole handshake."""
        self.state = BreakerState.CLOSED
        self.probe_at_s = float("inf")
        self._failures = 0

    def _open(self, now_s: float) -> None:
        self.state = BreakerState.OPEN
        self.probe_at_s = now_s + self._probe_after_s * self._jitter()

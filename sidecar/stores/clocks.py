"""Clocks: the one that tells the time, one that nobody can set, and that of a shared store."""

from __future__ import annotations

import time
from collections.abc import Callable

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


class StoreClock:
    """
    The time of a shared store, as its replies tell it: the same for every sidecar of a fleet.

    Until a reply has come, and only until then, it is this machine's own time. Where several nodes hold the
    store it is that of the node whose clock is furthest ahead, so that all sidecars go by the same one.
    """

    __slots__ = ("_ahead_us", "_ahead_us_by_node", "_steady_us", "_wall_us")

    def __init__(
        self, steady_us: Callable[[], int] = steady_clock_us, wall_us: Callable[[], int] = wall_clock_us
    ) -> None:
        """Between replies count by *steady_us*; *wall_us* is this machine's own time."""
        self._steady_us = steady_us
        self._wall_us = wall_us
        self._ahead_us_by_node: dict[str, int] = {}
        self._ahead_us: int | None = None

    def now_us(self) -> int:
        """The store's time in µs since the epoch; behind by no more than a reply was on its way."""
        ahead_us = self._ahead_us
        return self._wall_us() if ahead_us is None else self._steady_us() + ahead_us

    @property
    def difference_us(self) -> int:
        """The store's time less this machine's own; 0 while the store's is not known."""
        return 0 if self._ahead_us is None else self.now_us() - self._wall_us()

    def learn(self, node: str, told_us: int) -> None:
        """*node* has just told its time."""
        self._ahead_us_by_node[node] = told_us - self._steady_us()
        self._ahead_us = max(self._ahead_us_by_node.values())

    def forget(self, node: str) -> None:
        """*node* is not connected; the time of the last one stays the best that is known."""
        if len(self._ahead_us_by_node) > 1 and self._ahead_us_by_node.pop(node, None) is not None:
            self._ahead_us = max(self._ahead_us_by_node.values())

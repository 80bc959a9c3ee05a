"""Clocks: the wall clock, a clock that never steps, and the clock of a shared store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""CLOCK_BOOTTIME (Linux) includes the time that the machine was suspended."""

_EPOCH_NS: Final = time.time_ns() - time.clock_gettime_ns(STEADY)


def wall_clock_us() -> int:
    """Microseconds since the epoch by the system's clock, which may step forward and back."""
    return time.time_ns() // 1_000


def steady_clock_us() -> int:
    """
    Microseconds since the epoch: the system's clock at process start plus the time elapsed since.

    This clock never steps: after the system's clock is set, the two differ by that step.
    """
    return (time.clock_gettime_ns(STEADY) + _EPOCH_NS) // 1_000


class StoreClock:
    """
    The time of a shared store, read from its replies: the same for every sidecar of a fleet.

    Before the first reply it is this machine's own time. With several nodes it is the time of the node whose
    clock is furthest ahead, so that all sidecars use the same clock.
    """

    __slots__ = ("_ahead_us", "_ahead_us_by_node", "_steady_us", "_wall_us")

    def __init__(
        self, steady_us: Callable[[], int] = steady_clock_us, wall_us: Callable[[], int] = wall_clock_us
    ) -> None:
        """Use *steady_us* between replies; *wall_us* is this machine's own time."""
        self._steady_us = steady_us
        self._wall_us = wall_us
        self._ahead_us_by_node: dict[str, int] = {}
        self._ahead_us: int | None = None

    def now_us(self) -> int:
        """The store's time in µs since the epoch; late by at most the network delay of a reply."""
        ahead_us = self._ahead_us
        return self._wall_us() if ahead_us is None else self._steady_us() + ahead_us

    @property
    def difference_us(self) -> int:
        """The store's time minus this machine's time; 0 before the first reply."""
        return 0 if self._ahead_us is None else self.now_us() - self._wall_us()

    def update(self, node: str, node_us: int) -> None:
        """Record *node_us*, the time that *node* has just replied."""
        self._ahead_us_by_node[node] = node_us - self._steady_us()
        self._ahead_us = max(self._ahead_us_by_node.values())

    def forget(self, node: str) -> None:
        """Drop the time of *node*, which is disconnected; the last known node's time is kept."""
        if len(self._ahead_us_by_node) > 1 and self._ahead_us_by_node.pop(node, None) is not None:
            self._ahead_us = max(self._ahead_us_by_node.values())

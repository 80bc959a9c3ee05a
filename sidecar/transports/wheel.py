"""
A timer wheel: many time-outs share one loop timer, with constant cost to add and to discard.

A separate loop timer per deadline would cost more than the rest of a call, and nearly every call is answered
long before its deadline. So time is divided into ticks of 10 ms, and each tick has a set of items.
"""

from __future__ import annotations

import heapq
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Final, Protocol

TICKS_PER_S: Final = 100


class Loop(Protocol):
    """The part of an event loop that transports use; tests run it by hand."""

    def time(self) -> float:
        """Return the seconds on the loop's clock."""

    def call_soon(self, callback: Callable[..., object], *args: object) -> object:
        """Call *callback* in the next turn."""

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> TimerHandle:
        """Call *callback* at *when* on the loop's clock."""


class Due(Protocol):
    """An item of the wheel."""

    def on_due(self, now_s: float) -> None:
        """Called once, at most one tick and a loop turn after the item's time."""


class TimerWheel:
    """Calls items at the tick at which they are due; `ticks` is a heap."""

    __slots__ = ("_armed", "_armed_tick", "_due_by_tick", "_loop", "ticks")

    def __init__(self, loop: Loop) -> None:
        """Use the clock of *loop*, and at most one of its timers."""
        self._loop = loop
        self._due_by_tick: dict[int, set[Due]] = {}
        self.ticks: list[int] = []  # may contain ticks whose items were all discarded
        self._armed: TimerHandle | None = None
        self._armed_tick = 0

    def __len__(self) -> int:
        """The number of items."""
        return sum(map(len, self._due_by_tick.values()))

    def add(self, when_s: float, item: Due) -> int:
        """Call *item* at *when_s*; return the tick, for `discard`."""
        tick = int(when_s * TICKS_PER_S) + 1
        items = self._due_by_tick.get(tick)
        if items is None:
            self._open_tick(tick, item)
        else:
            items.add(item)
        return tick

    def discard(self, tick: int, item: Due) -> None:
        """Remove *item* from *tick*, if it is still there."""
        items = self._due_by_tick.get(tick)
        if items is not None:
            items.discard(item)
            if not items:
                del self._due_by_tick[tick]

    def close(self) -> None:
        """Remove all items and stop the loop timer."""
        self._due_by_tick.clear()
        self.ticks.clear()
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None

    def _open_tick(self, tick: int, item: Due) -> None:
        self._due_by_tick[tick] = {item}
        if len(self.ticks) > 2 * len(self._due_by_tick) + 64:
            self.ticks = list(self._due_by_tick)  # drop stale ticks, so that the heap stays bounded
            heapq.heapify(self.ticks)
        else:
            heapq.heappush(self.ticks, tick)
        if self._armed is None or tick < self._armed_tick:
            self._arm()

    def _arm(self) -> None:
        while self.ticks and self.ticks[0] not in self._due_by_tick:
            heapq.heappop(self.ticks)
        if self._armed is not None:
            self._armed.cancel()
            self._armed = None
        if self.ticks:
            self._armed_tick = self.ticks[0]
            self._armed = self._loop.call_at(self._armed_tick / TICKS_PER_S, self._turn)

    def _turn(self) -> None:
        self._armed = None
        now_s = self._loop.time()
        # The loop's clock may be early or coarse (uvloop: 1 ms); the armed tick is always due.
        last = max(self._armed_tick, int(now_s * TICKS_PER_S))
        try:
            while self.ticks and self.ticks[0] <= last:
                # Pop items singly and the tick last: an item may discard others, and if an item raises,
                # the remaining items are called at the next turn.
                items = self._due_by_tick.get(self.ticks[0])
                while items:
                    items.pop().on_due(now_s)
                self._due_by_tick.pop(heapq.heappop(self.ticks), None)
        finally:
            self._arm()

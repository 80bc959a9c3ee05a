"""
Work that peers cause, done a little at a time and in turn by where it comes from.

A listener may share its event loop with decisions. Whatever its peers do, it then takes a bounded time of
each turn of the loop and a bounded share of the loop's time: reading is paused while work waits, so
that what was not done yet waits in the kernel, at the peer's expense.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from sidecar.transports.wheel import Loop

REST_MIN_S = 0.001
"""Event loops have timers of a millisecond."""


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How much of an event loop work may take.

    `turn_s` is the time of one turn, which the last piece of work may exceed; `share` the part of all time,
    1.0 = every turn. `is_prompt` = a request that is read while nothing waits is handled at once.
    """

    turn_s: float
    share: float = 1.0
    is_prompt: bool = False


OWN_LOOP = Pace(0.002)
"""On an event loop that decides nothing: others have their turn, too."""

DECIDING = Pace(0.002, is_prompt=True)
"""For requests that are decisions themselves."""

SHARED_LOOP = Pace(0.000_05, 0.05)
"""Beside decisions."""


class Worker(Protocol):
    """Somebody who has work to do for a source."""

    @property
    def source(self) -> str:
        """Where the work comes from."""

    def work(self) -> None:
        """Do a bounded piece of it; must not raise."""


Item = TypeVar("Item", bound=Worker)


class FairQueue(Generic[Item]):
    """Items in order of arrival for each source; the sources have their turns one after another."""

    __slots__ = ("_by_source",)

    def __init__(self) -> None:
        """Start empty."""
        self._by_source: dict[str, dict[Item, None]] = {}

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._by_source)

    def __iter__(self) -> Iterator[Item]:
        """Everything that waits, in no particular order."""
        return (item for items in self._by_source.values() for item in items)

    def add(self, item: Item) -> None:
        """Have *item* wait, once."""
        self._by_source.setdefault(item.source, {})[item] = None

    def discard(self, item: Item) -> None:
        """Forget *item*, if it waits."""
        items = self._by_source.get(item.source)
        if items is not None and items.pop(item, item) is None and not items:
            del self._by_source[item.source]

    def pop(self) -> Item:
        """Take the item whose turn it is; there must be one."""
        source = next(iter(self._by_source))
        items = self._by_source.pop(source)
        item = next(iter(items))
        del items[item]
        if items:
            self._by_source[source] = items
        return item


class WorkQueue:
    """Has workers do their pieces of work on an event loop, no faster than a pace allows."""

    __slots__ = ("_handle", "_loop", "_pace", "_rest_until_s", "_waiting")

    def __init__(self, loop: Loop, pace: Pace) -> None:
        """Work on *loop* at *pace*."""
        self._loop = loop
        self._pace = pace
        self._waiting: FairQueue[Worker] = FairQueue()
        self._handle: TimerHandle | None = None
        self._rest_until_s = 0.0

    @property
    def is_free(self) -> bool:
        """Whether a request that has just been read may be handled at once."""
        return self._pace.is_prompt and not self._waiting

    def add(self, worker: Worker) -> None:
        """Have *worker* do one piece of work when its turn comes."""
        if not self._waiting:
            self._schedule()
        self._waiting.add(worker)

    def discard(self, worker: Worker) -> None:
        """Forget *worker*, if it waits."""
        self._waiting.discard(worker)

    def charge(self, cost_s: float) -> None:
        """Count work of *cost_s* that is done elsewhere."""
        if self._pace.share < 1.0:
            self._rest(cost_s)

    def _schedule(self) -> None:
        if self._handle is None:
            if self._rest_until_s > self._loop.time():
                self._handle = self._loop.call_at(self._rest_until_s, self._turn)
            else:
                self._handle = self._loop.call_at(self._loop.time(), self._turn)

    def _turn(self) -> None:
        self._handle = None
        began_s = now_s = perf_counter()
        while self._waiting and now_s - began_s < self._pace.turn_s:
            self._waiting.pop().work()
            now_s = perf_counter()
        if self._pace.share < 1.0:
            self._rest(now_s - began_s)
        if self._waiting:
            self._schedule()

    def _rest(self, worked_s: float) -> None:
        share = self._pace.share
        from_s = max(self._rest_until_s, self._loop.time())
        self._rest_until_s = from_s + max(REST_MIN_S, worked_s * (1 - share) / share)

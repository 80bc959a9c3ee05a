"""
A queue of peers' work that is fair between sources and limits the work's share of the event loop.

A listener may share its event loop with decisions. Whatever its peers do, it takes a bounded time of each
turn and a bounded share of the loop's time. Reading pauses while work waits, so that further input waits in
the kernel.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from sidecar.transports.wheel import Loop

REST_MIN_S = 0.001
"""The timer resolution of event loops."""


@dataclass(frozen=True, slots=True)
class Pace:
    """
    The share of an event loop that work may take.

    `turn_s` is the time per turn, which the last piece of work may exceed; `share` is the share of all time,
    1.0 = every turn. `is_prompt` = a request that is read while the queue is empty is handled immediately.
    """

    turn_s: float
    share: float = 1.0
    is_prompt: bool = False


OWN_LOOP = Pace(0.002)
"""For an event loop that does not decide."""

DECIDING = Pace(0.002, is_prompt=True)
"""For a listener whose requests are decisions."""

SHARED_LOOP = Pace(0.000_05, 0.05)
"""For an event loop that also decides."""


class Worker(Protocol):
    """Does work for a source."""

    @property
    def source(self) -> str:
        """The source of the work; sources take turns."""

    def work(self) -> None:
        """Do a bounded piece of work; must not raise."""


Item = TypeVar("Item", bound=Worker)


class FairQueue(Generic[Item]):
    """A queue that serves sources round-robin, and each source's items in order of arrival."""

    __slots__ = ("_by_source",)

    def __init__(self) -> None:
        """Start empty."""
        self._by_source: dict[str, dict[Item, None]] = {}

    def __bool__(self) -> bool:
        """Whether the queue has items."""
        return bool(self._by_source)

    def __iter__(self) -> Iterator[Item]:
        """All items, in no particular order."""
        return (item for items in self._by_source.values() for item in items)

    def add(self, item: Item) -> None:
        """Add *item*, unless it is in the queue."""
        self._by_source.setdefault(item.source, {})[item] = None

    def discard(self, item: Item) -> None:
        """Remove *item*, if it is in the queue."""
        items = self._by_source.get(item.source)
        if items is not None and items.pop(item, item) is None and not items:
            del self._by_source[item.source]

    def pop(self) -> Item:
        """Remove and return the next item; the queue must not be empty."""
        source = next(iter(self._by_source))
        items = self._by_source.pop(source)
        item = next(iter(items))
        del items[item]
        if items:
            self._by_source[source] = items
        return item


class WorkQueue:
    """Calls workers on an event loop, within a pace."""

    __slots__ = ("_handle", "_loop", "_pace", "_rest_until_s", "_waiting")

    def __init__(self, loop: Loop, pace: Pace) -> None:
        """Call workers on *loop* within *pace*."""
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
        """Call `work` of *worker* once, in its turn."""
        if not self._waiting:
            self._schedule()
        self._waiting.add(worker)

    def discard(self, worker: Worker) -> None:
        """Remove *worker*, if it is in the queue."""
        self._waiting.discard(worker)

    def charge(self, cost_s: float) -> None:
        """Count *cost_s* of work outside the queue."""
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

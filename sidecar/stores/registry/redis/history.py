"""How far the chains of a registry were seen, so that a store which went back is noticed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from sidecar.domain.audit import ChainHead

RECENT_S = 60.0
"""What was first seen so long ago has long been on every replica that may take a primary's place."""
POINTS_MAX = 64


class Point(NamedTuple):
    """A place in a chain, and when it was first seen (monotonic)."""

    sequence: int
    digest: str
    at_s: float


class History:
    """
    The places that this process saw, by partition: the latest, and those of the last minute.

    A failover to a replica that missed writes goes on from an earlier entry, and soon has as many entries
    as before: the sequence alone would not show that what was followed is no longer in the chain.
    """

    __slots__ = ("_clock", "_points", "_told")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Nothing was seen."""
        self._clock = clock
        self._told: dict[int, tuple[int, str]] = {}
        self._points: dict[int, deque[Point]] = {}

    def note(self, head: ChainHead) -> None:
        """A reader is told that the chain is at *head*."""
        self._told[head.chain] = (head.sequence, head.digest)
        self.see(head)

    def see(self, head: ChainHead) -> None:
        """The chain was at *head*, whoever was told."""
        points = self._points.setdefault(head.chain, deque())
        if not head.sequence or (points and points[-1].sequence >= head.sequence):
            return
        # What is there when a process begins may be old, so the first place counts as such.
        points.append(Point(head.sequence, head.digest, self._clock() if points else 0.0))
        self._settle(points)
        if len(points) > POINTS_MAX:
            del points[1]

    def _settle(self, points: deque[Point]) -> None:
        """Forget what lies before the latest place that is no longer recent."""
        since_s = self._clock() - RECENT_S
        while len(points) > 1 and points[1].at_s <= since_s:
            points.popleft()

    def latest(self, partition: int) -> Point | None:
        """The furthest place that was seen; None = none was."""
        points = self._points.get(partition)
        return points[-1] if points else None

    def settled(self, partition: int) -> Point | None:
        """The furthest place that was seen more than a minute ago, or when the process began."""
        points = self._points.get(partition)
        if not points:
            return None
        self._settle(points)
        return points[0]

    def forget(self, partition: int | None = None) -> None:
        """Whatever was seen of *partition*, None = of all, no longer counts."""
        for one in [partition] if partition is not None else list(self._points):
            self._points.pop(one, None)
            self._told.pop(one, None)

    def digest_at(self, partition: int, sequence: int) -> str | None:
        """The digest that was told for this place; None = nothing was, lately."""
        told = self._told.get(partition)
        return told[1] if told is not None and told[0] == sequence else None

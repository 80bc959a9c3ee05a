"""The chain entries that this process has seen, to detect a store that went back in history."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import NamedTuple

from sidecar.domain.audit import ChainHead

RECENT_S = 60.0
"""Entries first seen before this time are on every replica that may be promoted."""
POINTS_MAX = 64


class Point(NamedTuple):
    """An entry of a chain, and when it was first seen (monotonic)."""

    sequence: int
    digest: str
    at_s: float


class History:
    """
    The chain entries that this process has seen, by partition: the latest, and those of the last minute.

    After a failover to a replica that missed writes the chain continues from an earlier entry and soon has as
    many entries as before, so sequences alone do not show that entries were lost.
    """

    __slots__ = ("_delivered", "_points")

    def __init__(self) -> None:
        self._delivered: dict[int, tuple[int, str]] = {}
        self._points: dict[int, deque[Point]] = {}

    def deliver(self, head: ChainHead) -> None:
        """Record that a caller was given the revision at *head*."""
        self._delivered[head.chain] = (head.sequence, head.digest)
        self.see(head)

    def see(self, head: ChainHead) -> None:
        """Record that the chain was at *head*."""
        points = self._points.setdefault(head.chain, deque())
        if not head.sequence or (points and points[-1].sequence >= head.sequence):
            return
        # The first entry that a process sees may be old, so it counts as old.
        points.append(Point(head.sequence, head.digest, monotonic() if points else 0.0))
        self._drop_old(points)
        if len(points) > POINTS_MAX:
            del points[1]

    def _drop_old(self, points: deque[Point]) -> None:
        """Drop the entries before the latest one that is older than `RECENT_S`."""
        since_s = monotonic() - RECENT_S
        while len(points) > 1 and points[1].at_s <= since_s:
            points.popleft()

    def latest(self, partition: int) -> Point | None:
        """The latest entry seen; None = none."""
        points = self._points.get(partition)
        return points[-1] if points else None

    def settled(self, partition: int) -> Point | None:
        """The latest entry seen more than `RECENT_S` ago, or else the first one seen."""
        points = self._points.get(partition)
        if not points:
            return None
        self._drop_old(points)
        return points[0]

    def forget(self, partition: int | None = None) -> None:
        """Drop the entries of *partition*, None = of all partitions."""
        for number in [partition] if partition is not None else list(self._points):
            self._points.pop(number, None)
            self._delivered.pop(number, None)

    def digest_at(self, partition: int, sequence: int) -> str | None:
        """The digest of the revision last given to a caller, if it is *sequence*; else None."""
        delivered = self._delivered.get(partition)
        return delivered[1] if delivered is not None and delivered[0] == sequence else None

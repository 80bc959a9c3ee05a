"""
What peers make the process hold: answers that they do not take, requests that they do not finish.

A stream costs memory even when little of it is left to send, so streams count, not only bytes. Past a bound
the connections that hold most are closed: those of one address, or of all.
"""

from __future__ import annotations

from typing import Protocol

from sidecar.observe.metrics import Metrics
from sidecar.transports.server import TransportLimits

STREAM_BYTES = 2_560
"""What an open stream takes in ngh2 and here, beside its answer (measured: 517 MB for 200,000)."""

HELD_BYTES_MIN = 4_096
"""Less on one connection is not looked at: it is what an honest one has at any moment."""

SHED_TO = 3, 4
"""Close connections until so much of the bound is left, so that closing is not needed for each read."""


class Holder(Protocol):
    """A connection, as far as it holds memory for its peer."""

    def shed(self, held_bytes: int) -> None:
        """Close at once: this peer holds too much, *held_bytes*."""


class HeldMemory:
    """How much each connection of one server holds, and the bounds on it."""

    __slots__ = ("_by_holder", "_by_peer", "_bytes_max", "_gauge", "_peer_bytes_max", "_values", "total")

    def __init__(self, limits: TransportLimits, metrics: Metrics) -> None:
        """Nothing is held."""
        self._bytes_max = limits.unsent_bytes_max
        self._peer_bytes_max = limits.unsent_bytes_per_peer_max
        self._values = metrics.values
        self._gauge = metrics.slot("sidecar_unsent_bytes")
        self._by_holder: dict[Holder, tuple[int, str]] = {}
        self._by_peer: dict[str, int] = {}
        self.total = 0

    def of(self, holder: Holder) -> int:
        """What *holder* holds."""
        return self._by_holder.get(holder, (0, ""))[0]

    def set(self, holder: Holder, peer: str, held_bytes: int) -> None:
        """
        *holder*, a connection of *peer* ('' = no address), holds *held_bytes* now.

        Past a bound some are shed, *holder* or others.
        """
        if held_bytes < HELD_BYTES_MIN:
            held_bytes = 0
        change = held_bytes - self.of(holder)
        if not change:
            return
        if held_bytes:
            self._by_holder[holder] = held_bytes, peer
        else:
            del self._by_holder[holder]
        self._add(peer, change)
        if change < 0:
            return
        if self.total > self._bytes_max:
            self._shed(list(self._by_holder), self.total - _left(self._bytes_max))
        elif peer and self._by_peer[peer] > self._peer_bytes_max:
            of_peer = [each for each, (_, its_peer) in self._by_holder.items() if its_peer == peer]
            self._shed(of_peer, self._by_peer[peer] - _left(self._peer_bytes_max))

    def _add(self, peer: str, change: int) -> None:
        self.total += change
        self._values[self._gauge] = self.total
        if peer:
            self._by_peer[peer] = self._by_peer.get(peer, 0) + change
            if not self._by_peer[peer]:
                del self._by_peer[peer]

    def _shed(self, holders: list[Holder], excess_bytes: int) -> None:
        """Close those of *holders* that hold most, until *excess_bytes* are free."""
        for holder in sorted(holders, key=self.of, reverse=True):
            if excess_bytes <= 0:
                return
            held_bytes, peer = self._by_holder.pop(holder)
            self._add(peer, -held_bytes)
            excess_bytes -= held_bytes
            holder.shed(held_bytes)


def _left(bound: int) -> int:
    part, whole = SHED_TO
    return bound * part // whole

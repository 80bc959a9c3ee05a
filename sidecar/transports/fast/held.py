"""
Limits the memory that peers hold by not reading answers and not finishing requests.

Open streams count as well as bytes, because a stream takes memory even if little of its answer is unsent.
Over a limit, the connections that hold most are closed: those of one address, or of all addresses.
"""

from __future__ import annotations

from typing import Final, Protocol

from sidecar.observe.metrics import Metrics
from sidecar.transports.server import TransportLimits

STREAM_BYTES: Final = 2_560
"""Memory of an open stream in ngh2 and Python, without its answer (measured: 517 MB for 200,000)."""

HELD_BYTES_MIN: Final = 4_096
"""Smaller amounts per connection are ignored: normal connections have them at any time."""

SHED_TO: Final = 3, 4
"""Over a limit, close connections down to this fraction of it, so that not every read closes some."""


class Holder(Protocol):
    """A connection that holds memory for its peer."""

    def shed(self, held_bytes: int) -> None:
        """Close now, because this peer holds too much memory, *held_bytes*."""


class HeldMemory:
    """The memory that each connection of one server holds, and its limits."""

    __slots__ = ("_by_holder", "_by_peer", "_bytes_max", "_gauge", "_peer_bytes_max", "_values", "total")

    def __init__(self, limits: TransportLimits, metrics: Metrics) -> None:
        """Apply *limits*; set the gauge in *metrics*."""
        self._bytes_max = limits.unsent_bytes_max
        self._peer_bytes_max = limits.unsent_bytes_per_peer_max
        self._values = metrics.values
        self._gauge = metrics.slot("sidecar_unsent_bytes")
        self._by_holder: dict[Holder, tuple[int, str]] = {}
        self._by_peer: dict[str, int] = {}
        self.total = 0

    def of(self, holder: Holder) -> int:
        """Return the bytes that *holder* holds."""
        return self._by_holder.get(holder, (0, ""))[0]

    def set(self, holder: Holder, peer: str, held_bytes: int) -> None:
        """
        Set the bytes that *holder*, a connection of *peer* ('' = no address), holds.

        Over a limit, connections are shed, *holder* or others.
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
            of_peer = [other for other, (_, its_peer) in self._by_holder.items() if its_peer == peer]
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

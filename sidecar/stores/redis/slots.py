"""
The slot map of a Cluster (which primary serves which slot), as most of its nodes see it.

A primary that is partitioned from the others still answers, with an old slot map. So several nodes are
queried: those that report cluster_state:ok are preferred, of these the ones with the highest epoch, and of
these the map that most of them report.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, HandshakeError
from sidecar.stores.redis.keys import SLOTS, KeySpace
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.urls import Address


class SlotMap(list[tuple[int, int, Address]]):
    """First slot, last slot, primary of each range."""

    def owners(self, keys: KeySpace) -> dict[int, Address]:
        """The primary of each partition of *keys*, without partitions whose slot no node serves."""
        return {
            partition: primary
            for partition in range(keys.partitions)
            for first, last, primary in self
            if first <= keys.slot_of(partition) <= last
        }


NODES_ASKED_MAX = 8
_EPOCH = re.compile(rb"^cluster_current_epoch:(\d+)", re.MULTILINE)
_IS_WELL = re.compile(rb"^cluster_state:ok", re.MULTILINE)


class _View(NamedTuple):
    """The state of the Cluster as one node reports it."""

    is_well: bool
    epoch: int
    slot_map: SlotMap


async def find_slots(connector: Connector, nodes: Iterable[Address]) -> SlotMap:
    """
    The slot map, from the first `NODES_ASKED_MAX` of *nodes*, queried concurrently.

    Raises:
        HandshakeError: no node answered.
    """
    asked = list(dict.fromkeys(nodes))[:NODES_ASKED_MAX]
    found = await asyncio.gather(*(_view(connector, node) for node in asked), return_exceptions=True)
    views = [view for view in found if isinstance(view, _View)]
    for failure in found:
        if isinstance(failure, BaseException) and not isinstance(failure, CONNECT_ERRORS):
            raise failure
    if not views:
        raise HandshakeError("; ".join(dict.fromkeys(str(failure) for failure in found)))
    votes = Counter(str(view.slot_map) for view in views)
    return max(views, key=lambda view: (view.is_well, view.epoch, votes[str(view.slot_map)])).slot_map


async def _view(connector: Connector, node: Address) -> _View:
    slots, info = await connector.ask(node, ("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"))
    if isinstance(info, ErrorReply):
        raise info
    epoch = _EPOCH.search(info)
    return _View(
        bool(_IS_WELL.search(info)), int(epoch[1]) if epoch is not None else 0, read_slots(slots, node.host)
    )


def read_slots(reply: Any, asked_host: str) -> SlotMap:
    """
    Parse the reply to CLUSTER SLOTS; an empty host means *asked_host*.

    Raises:
        HandshakeError: the reply is malformed or has no slots.
    """
    try:
        slot_map = [
            (first, last, Address((primary[0] or b"").decode() or asked_host, primary[1]))
            for first, last, primary, *_ in reply
        ]
        if all(0 <= first <= last < SLOTS for first, last, _ in slot_map) and slot_map:
            return SlotMap(sorted(slot_map, key=lambda part: part[0]))
    except (TypeError, ValueError, AttributeError, LookupError):
        pass
    raise HandshakeError(
        f"CLUSTER SLOTS returned {str(reply)[:80]!r}; it must list slots and their primaries: check that this"
        " is a Redis Cluster with slots assigned"
    )


def read_redirect(error: ErrorReply, asked: Address) -> Address:
    """
    The target of a MOVED or ASK error; an empty host means that of *asked*.

    Raises:
        HandshakeError: the error names no address.
    """
    host, colon, port = str(error).split(" ")[-1].rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        raise HandshakeError(f"{asked} redirects without an address: {error}")
    return Address(host.strip("[]") or asked.host, int(port))

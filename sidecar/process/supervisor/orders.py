"""
Orders to a worker, to decide by a change from now on, and its confirmations: so a change is in force before
the admin API answers.

Each is one JSON object in one packet of the socket between them, see `reports`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from sidecar.domain.changes import Position

ORDER_BYTES_MAX = 256
ORDERS_MAX = 64
"""Orders that one worker may have under way."""


class Order(NamedTuple):
    """Decide by the change at `position`, and confirm it by `number`."""

    number: int
    position: Position

    def packed(self) -> bytes:
        """As one packet."""
        return json.dumps({"order": self.number, "position": self.position}).encode()


class Confirmation(NamedTuple):
    """Whether the order `number` is carried out."""

    number: int
    is_in_force: bool

    def packed(self) -> bytes:
        """As one packet."""
        return json.dumps({"order": self.number, "is_in_force": self.is_in_force}).encode()


def read_order(packet: bytes) -> Order | None:
    """The order in one packet; None = it holds none."""
    match _content(packet):
        case {"order": int(number), "position": [int(partition), int(sequence)]}:
            return Order(number, Position(partition, sequence))
    return None


def read_confirmation(packet: bytes) -> Confirmation | None:
    """The confirmation in one packet; None = it holds something else."""
    match _content(packet):
        case {"order": int(number), "is_in_force": bool(is_in_force)}:
            return Confirmation(number, is_in_force)
    return None


def _content(packet: bytes) -> Any:
    try:
        return json.loads(packet)
    except ValueError:
        return None


class OpenOrders:
    """The orders that one worker has not confirmed yet."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        """*send* sends one packet to the worker, and raises OSError when that cannot be done now."""
        self._send = send
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[bool]] = {}
        self.is_over = False

    async def give(self, position: Position, timeout_s: float) -> bool:
        """
        Have the worker decide by the change at *position*; False = it does not within *timeout_s*.

        A worker that is gone decides nothing, and its successor loads the registry later than the change.
        """
        if self.is_over:
            return True
        if len(self._open) >= ORDERS_MAX:
            return False
        number = next(self._numbers)
        confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open[number] = confirmed
        try:
            with contextlib.suppress(ConnectionError):  # it is about to be gone, which `end` tells
                self._send(Order(number, position).packed())
            async with asyncio.timeout(timeout_s):
                return await confirmed
        except OSError:  # not in time, or it does not read at all
            return False
        finally:
            del self._open[number]

    def hear(self, confirmation: Confirmation) -> None:
        """The worker has carried an order out, or could not; one that came too late is nothing."""
        confirmed = self._open.get(confirmation.number)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(confirmation.is_in_force)

    def end(self) -> None:
        """The worker is gone."""
        self.is_over = True
        for confirmed in self._open.values():
            if not confirmed.done():
                confirmed.set_result(True)

"""
The messages between a worker and its supervisor: reports, orders, and their confirmations.

Each message is one JSON object in one packet of a Unix socket (SOCK_SEQPACKET), so it arrives whole or not
at all. When either process ends, its socket closes, which tells the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sidecar.domain.changes import Position
from sidecar.process.listeners import Served, read_served, texts_of
from sidecar.process.readiness import Component, lacking, remarks
from sidecar.sources.file_faults import FileFault, FileFaultsError
from sidecar.transports.server import ListenError

PACKET_BYTES_MAX = 131_072
PLACE_CHARS_MAX = 200
PROBLEM_CHARS_MAX = 500
"""Of the parts of a mistake: as many as are shown (`FAULTS_SHOWN_MAX`) then fit one packet."""

START_ERRORS = (FileFaultsError, ListenError)
"""Mistakes of the user that end a start; they are told as they are."""


@dataclass(frozen=True, slots=True)
class Report:
    """
    How a worker fares.

    `served` None = it does not serve yet. `fault` = why it is about to end without ever serving.
    """

    served: Served | None = None
    components: Mapping[str, Component] = field(default_factory=dict)
    fault: Exception | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it serves and every component is ready."""
        return self.served is not None and all(component.is_ready for component in self.components.values())

    @property
    def lacking(self) -> str:
        """The components that are not ready, as text: 'registry: loading'."""
        return lacking(self.components)

    @property
    def state(self) -> str:
        """What /readyz says of the worker: what it lacks, or 'ready' and what is wrong all the same."""
        remarked = remarks(self.components)
        return self.lacking or (f"ready; {remarked}" if remarked else "ready")

    def packed(self) -> bytes:
        """As one packet."""
        content = {
            "served": None if self.served is None else texts_of(self.served),
            "components": self.components,
            "fault": _packed_fault(self.fault),
        }
        return json.dumps(content, ensure_ascii=False).encode(errors="replace")


def read_report(packet: bytes) -> Report:
    """The report in one packet."""
    content = json.loads(packet)
    served = content["served"]
    return Report(
        None if served is None else read_served(served),
        {name: Component(*component) for name, component in content["components"].items()},
        _unpacked_fault(content["fault"]),
    )


def _packed_fault(fault: Exception | None) -> Sequence[Any]:
    if isinstance(fault, FileFaultsError):
        return ["file", fault.total, [_cut(one) for one in fault.faults], fault.is_unreadable]
    return ["listen", str(fault)[:PROBLEM_CHARS_MAX]] if fault is not None else []


def _unpacked_fault(packed: Sequence[Any]) -> Exception | None:
    match packed:
        case ["file", total, faults, is_unreadable]:
            return FileFaultsError((FileFault(*fault) for fault in faults), total, is_unreadable)
        case ["listen", text]:
            return ListenError(text)
    return None


def _cut(fault: FileFault) -> FileFault:
    return FileFault(
        fault.file[-PLACE_CHARS_MAX:],
        fault.line,
        fault.field[:PLACE_CHARS_MAX],
        fault.problem[:PROBLEM_CHARS_MAX],
    )


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

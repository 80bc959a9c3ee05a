"""
The messages between a worker and its supervisor: reports, orders, and their confirmations.

Each message is one JSON object in one packet of a Unix socket (SOCK_SEQPACKET), so it arrives whole or not
at all. When either process ends, its socket closes, which the other notices.
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
from sidecar.process.readiness import Component, describe_degraded, describe_unready
from sidecar.sources.file_faults import FileFault, FileFaultsError
from sidecar.transports.server import ListenError

PACKET_BYTES_MAX = 131_072
PLACE_CHARS_MAX = 200
PROBLEM_CHARS_MAX = 500
"""Bounds of one reported mistake, so that `FAULTS_SHOWN_MAX` of them fit one packet."""

START_ERRORS = (FileFaultsError, ListenError)
"""Mistakes of the user that end a start; the supervisor raises them unchanged."""


@dataclass(frozen=True, slots=True)
class Report:
    """
    The state of a worker.

    `served` None = it does not serve yet. `fault` = why its start failed.
    """

    served: Served | None = None
    components: Mapping[str, Component] = field(default_factory=dict)
    fault: Exception | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it serves and every component is ready."""
        return self.served is not None and all(component.is_ready for component in self.components.values())

    @property
    def unready(self) -> str:
        """The components that are not ready, as text: 'registry: loading'."""
        return describe_unready(self.components)

    @property
    def state(self) -> str:
        """The worker's state for /readyz: the components that are not ready, or 'ready' with warnings."""
        degraded = describe_degraded(self.components)
        return self.unready or (f"ready; {degraded}" if degraded else "ready")

    def packed(self) -> bytes:
        """The report as one packet."""
        content = {
            "served": None if self.served is None else texts_of(self.served),
            "components": self.components,
            "fault": _packed_fault(self.fault),
        }
        return json.dumps(content, ensure_ascii=False).encode(errors="replace")


def read_report(packet: bytes) -> Report:
    """Read the report in one packet."""
    content = json.loads(packet)
    served = content["served"]
    return Report(
        None if served is None else read_served(served),
        {name: Component(*component) for name, component in content["components"].items()},
        _unpacked_fault(content["fault"]),
    )


def _packed_fault(fault: Exception | None) -> Sequence[Any]:
    if isinstance(fault, FileFaultsError):
        return ["file", fault.total, [_shortened(part) for part in fault.faults], fault.is_unreadable]
    return ["listen", str(fault)[:PROBLEM_CHARS_MAX]] if fault is not None else []


def _unpacked_fault(packed: Sequence[Any]) -> Exception | None:
    match packed:
        case ["file", total, faults, is_unreadable]:
            return FileFaultsError((FileFault(*fault) for fault in faults), total, is_unreadable)
        case ["listen", text]:
            return ListenError(text)
    return None


def _shortened(fault: FileFault) -> FileFault:
    return FileFault(
        fault.file[-PLACE_CHARS_MAX:],
        fault.line,
        fault.field[:PLACE_CHARS_MAX],
        fault.problem[:PROBLEM_CHARS_MAX],
    )


ORDER_BYTES_MAX = 256
ORDERS_MAX = 64
"""Unconfirmed orders that one worker may have."""


class Order(NamedTuple):
    """An order to a worker: decide by the change at `position`, and confirm with `number`."""

    number: int
    position: Position

    def packed(self) -> bytes:
        """As one packet."""
        return json.dumps({"order": self.number, "position": self.position}).encode()


class Confirmation(NamedTuple):
    """A worker's answer to the order `number`: whether it decides by the change."""

    number: int
    is_in_force: bool

    def packed(self) -> bytes:
        """As one packet."""
        return json.dumps({"order": self.number, "is_in_force": self.is_in_force}).encode()


def read_order(packet: bytes) -> Order | None:
    """The order in one packet; None = the packet holds no order."""
    match _content(packet):
        case {"order": int(number), "position": [int(partition), int(sequence)]}:
            return Order(number, Position(partition, sequence))
    return None


def read_confirmation(packet: bytes) -> Confirmation | None:
    """The confirmation in one packet; None = the packet holds something else."""
    match _content(packet):
        case {"order": int(number), "is_in_force": bool(is_in_force)}:
            return Confirmation(number, is_in_force)
    return None


def _content(packet: bytes) -> Any:
    try:
        return json.loads(packet)
    except ValueError:
        return None


class PendingOrders:
    """
    The orders that one worker has not confirmed yet.

    Orders put a change in force in every worker before the admin API answers.
    """

    def __init__(self, send: Callable[[bytes], object]) -> None:
        """*send* sends one packet to the worker, and raises OSError if it cannot send now."""
        self._send = send
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[bool]] = {}
        self.is_closed = False

    async def send(self, position: Position, timeout_s: float) -> bool:
        """
        Order the worker to decide by the change at *position*; False = not confirmed within *timeout_s*.

        True for a worker that has ended: it decides nothing, and its successor loads the registry after the
        change.
        """
        if self.is_closed:
            return True
        if len(self._open) >= ORDERS_MAX:
            return False
        number = next(self._numbers)
        confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open[number] = confirmed
        try:
            with contextlib.suppress(ConnectionError):  # the worker is ending: `close` follows
                self._send(Order(number, position).packed())
            async with asyncio.timeout(timeout_s):
                return await confirmed
        except OSError:  # no confirmation in time, or the worker does not read its socket
            return False
        finally:
            del self._open[number]

    def confirm(self, confirmation: Confirmation) -> None:
        """Complete the order that *confirmation* answers; a late confirmation is ignored."""
        confirmed = self._open.get(confirmation.number)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(confirmation.is_in_force)

    def close(self) -> None:
        """Complete all orders: the worker has ended."""
        self.is_closed = True
        for confirmed in self._open.values():
            if not confirmed.done():
                confirmed.set_result(True)

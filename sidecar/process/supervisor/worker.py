"""
A worker process: `python -m sidecar.process.supervisor.worker <fd>`, started by the supervisor alone.

It is a sidecar like any other, with three differences: it counts in shared memory, it tells the
supervisor how it fares instead of having an admin listener, and it drains when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
from collections.abc import Iterator
from math import inf

from sidecar.observe.logs import LineHandler, log_event
from sidecar.observe.metrics import Metrics
from sidecar.observe.shared import CountBlock, LayoutError
from sidecar.observe.table import TABLE
from sidecar.process.listeners import Served
from sidecar.process.run import Process, StartPatience, run
from sidecar.process.shutdown import EXIT_FAULT
from sidecar.process.supervisor.assignment import read_assignment
from sidecar.process.supervisor.messages import (
    ORDER_BYTES_MAX,
    START_ERRORS,
    Confirmation,
    Order,
    Report,
    read_order,
)
from sidecar.process.supervisor.resources import request_short_slices
from sidecar.process.wiring import LoadedConfig, Sidecar
from sidecar.transports.server import ListenError

BEAT_INTERVAL_S = 1.0
ORPHAN_GRACE_S = 5.0
"""What a worker without a supervisor gets beyond its drain before the kernel ends it."""

_log = logging.getLogger("sidecar.supervisor")


class Link:
    """The worker's end of the socket to its supervisor."""

    def __init__(self, fd: int) -> None:
        """Own *fd*."""
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self._unsent = b""
        self.is_cut = False

    def tell(self, report: Report) -> None:
        """Send *report*; what cannot be sent now is sent with the next beat, unless a newer one is."""
        self._unsent = report.packed()
        self.flush()

    def flush(self) -> None:
        """Send what could not be sent."""
        if self._unsent:
            with contextlib.suppress(OSError):  # full, or nobody is there any more
                self.socket.send(self._unsent)
                self._unsent = b""

    def confirm(self, confirmation: Confirmation) -> None:
        """Send *confirmation*; one that cannot be sent now is not waited for any more when it could be."""
        with contextlib.suppress(OSError):
            self.socket.send(confirmation.packed())

    def receive(self) -> Iterator[Order]:
        """The orders that have come; afterwards `is_cut` tells whether the supervisor has gone."""
        try:
            while packet := self.socket.recv(ORDER_BYTES_MAX):
                order = read_order(packet)
                if order is not None:
                    yield order
            self.is_cut = True
        except BlockingIOError:
            return
        except OSError:
            self.is_cut = True


class WorkerField(logging.Filter):
    """Puts the worker's number on every line."""

    def __init__(self, index: int) -> None:
        """Worker *index*."""
        super().__init__()
        self._field = {"worker": index}

    def filter(self, record: logging.LogRecord) -> bool:
        """Let *record* pass, with the field."""
        fields: dict[str, object] = getattr(record, "event_fields", {})
        record.event_fields = self._field | fields
        return True


class WorkerSidecar(Process):
    """One run of a worker."""

    def __init__(
        self, loaded: LoadedConfig, sidecar: Sidecar, logs: LineHandler, index: int, link: Link,
        block: CountBlock, is_successor: bool = False,
    ) -> None:  # fmt: skip
        """
        Worker *index* of the supervisor at the other end of *link*.

        *is_successor* = another process serves until this one is ready.
        """
        logs.addFilter(WorkerField(index))
        super().__init__(loaded, sidecar, logs)
        self._link = link
        self._block = block
        self._served: Served | None = None
        if is_successor:
            self.patience = StartPatience(inf, inf)  # the supervisor ends it if it takes too long

    def begin(self) -> None:
        """Tell the supervisor, from now on, whenever the readiness of this worker changes."""
        self._sidecar.readiness.on_change = self._tell
        self._tell()
        self._beat()
        super().begin()

    def on_serving(self, served: Served) -> None:
        """Tell the supervisor that it serves."""
        self._served = served
        self._tell()

    def _replaces(self) -> bool:
        """Whose place this worker takes is for the supervisor to know."""
        return False

    def handle_signals(self) -> None:
        """SIGTERM drains, however often it comes: only the supervisor cuts a drain short (SIGKILL)."""
        super().handle_signals()
        asyncio.get_running_loop().add_reader(self._link.socket, self._hear_supervisor)

    def stop(self, number: signal.Signals) -> None:
        """Drain."""
        if not self._told_to_stop.is_set():
            super().stop(number)

    def _tell(self) -> None:
        self._link.tell(Report(self._served, dict(self._sidecar.readiness.components)))

    def _beat(self) -> None:
        self._block.raise_beat()
        self._link.flush()
        asyncio.get_running_loop().call_later(BEAT_INTERVAL_S, self._beat)

    async def _carry_out(self, order: Order) -> None:
        """Decide by a change, and say whether it is done."""
        followed = self._sidecar.followed
        is_in_force = followed is not None and await followed.put_in_force(order.position)
        self._link.confirm(Confirmation(order.number, is_in_force))

    def _hear_supervisor(self) -> None:
        for order in self._link.receive():
            self.spawn(self._carry_out(order))
        if not self._link.is_cut:
            return
        asyncio.get_running_loop().remove_reader(self._link.socket)
        log_event(_log, logging.WARNING, "the supervisor is gone")
        # Should the drain hang, nobody is there to end it: then the kernel does (SIGALRM).
        signal.alarm(math.ceil(self._sidecar.config.settings.drain_timeout_s + ORPHAN_GRACE_S))
        self.stop(signal.SIGTERM)


def main(fd: int) -> int:
    """Run the worker that the assignment in memfd *fd* describes; return its exit code."""
    assignment = read_assignment(fd)
    request_short_slices()
    link = Link(assignment.link_fd)
    try:
        block = CountBlock.attach(TABLE, assignment.counts_fd)
        return run(
            assignment.config,
            Metrics(TABLE, block.values),
            lambda loaded, sidecar, logs: WorkerSidecar(
                loaded, sidecar, logs, assignment.index, link, block, assignment.is_successor
            ),
        )
    except START_ERRORS as error:
        link.tell(Report(fault=error))
    except LayoutError as error:
        link.tell(Report(fault=ListenError(str(error))))
    return EXIT_FAULT


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

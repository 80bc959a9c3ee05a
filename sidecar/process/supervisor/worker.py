"""
A worker process: `python -m sidecar.process.supervisor.worker <fd>`, started by the supervisor.

It differs from a single-process sidecar in three ways: it counts in shared memory, it reports its state to
the supervisor instead of having an admin listener, and it drains when the supervisor has ended.
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
from sidecar.process.run import Process, StartTimeouts, run
from sidecar.process.shutdown import EXIT_FAULT
from sidecar.process.supervisor.assignment import Assignment, read_assignment
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
from sidecar.services.decision_recorder import DecisionRecorder
from sidecar.transports.server import ListenError

BEAT_INTERVAL_S = 1.0
ORPHAN_GRACE_S = 5.0
"""How long a worker without a supervisor may take after its drain before the kernel ends it."""

_log = logging.getLogger("sidecar.supervisor")


class Link:
    """The worker's end of the socket to its supervisor."""

    def __init__(self, fd: int) -> None:
        """Own the socket *fd*."""
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self._unsent = b""
        self.is_closed = False

    def send(self, report: Report) -> None:
        """Send *report*; if the socket is full, the newest report is sent with the next heartbeat."""
        self._unsent = report.packed()
        self.flush()

    def flush(self) -> None:
        """Send the report that could not be sent before."""
        if self._unsent:
            with contextlib.suppress(OSError):  # the socket is full, or the supervisor has ended
                self.socket.send(self._unsent)
                self._unsent = b""

    def confirm(self, confirmation: Confirmation) -> None:
        """Send *confirmation*; drop it if the socket is full, as the supervisor stops waiting for it."""
        with contextlib.suppress(OSError):
            self.socket.send(confirmation.packed())

    def receive(self) -> Iterator[Order]:
        """Yield the orders received; afterwards `is_closed` says whether the supervisor has ended."""
        try:
            while packet := self.socket.recv(ORDER_BYTES_MAX):
                order = read_order(packet)
                if order is not None:
                    yield order
            self.is_closed = True
        except BlockingIOError:
            return
        except OSError:
            self.is_closed = True


class WorkerField(logging.Filter):
    """Adds the worker's number to every log line."""

    def __init__(self, index: int) -> None:
        """Add the number *index*."""
        super().__init__()
        self._field = {"worker": index}

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the field to *record*, and keep it."""
        fields: dict[str, object] = getattr(record, "event_fields", {})
        record.event_fields = self._field | fields
        return True


class WorkerSidecar(Process):
    """The process of one worker."""

    def __init__(
        self, loaded: LoadedConfig, sidecar: Sidecar, logs: LineHandler, index: int, link: Link,
        block: CountBlock, is_successor: bool = False, recorder: DecisionRecorder | None = None,
    ) -> None:  # fmt: skip
        """
        Run worker *index* of the supervisor at the other end of *link*.

        *is_successor* = another process serves until this worker is ready; *recorder* None = the decision log
        is off.
        """
        logs.addFilter(WorkerField(index))
        super().__init__(loaded, sidecar, logs)
        self._link = link
        self._block = block
        self._served: Served | None = None
        self._recorder = recorder
        if recorder is not None:
            recorder.policy = sidecar.decider.policy
            sidecar.decider.add_observer(recorder.note)
            if sidecar.rate_limits is not None:
                sidecar.rate_limits.limiter.on_answered = recorder.note_limits
        if is_successor:
            self.timeouts = StartTimeouts(inf, inf)  # the supervisor kills a worker that takes too long

    async def run(self) -> int:
        """Serve, drain, and send the last decisions to the log."""
        try:
            return await super().run()
        finally:
            if self._recorder is not None:
                await self._recorder.end()

    def begin(self) -> None:
        """Report every change of this worker's readiness to the supervisor from now on."""
        self._sidecar.readiness.on_change = self._report
        self._report()
        self._beat()
        super().begin()

    def on_serving(self, served: Served) -> None:
        """Report to the supervisor that this worker serves."""
        self._served = served
        self._report()

    def _replaces(self) -> bool:
        """False: the supervisor handles the replacement of processes."""
        return False

    def handle_signals(self) -> None:
        """Handle signals; any number of SIGTERM only drains, and the supervisor ends a drain by SIGKILL."""
        super().handle_signals()
        asyncio.get_running_loop().add_reader(self._link.socket, self._read_orders)

    def stop(self, number: signal.Signals) -> None:
        """Start the drain, once."""
        if not self._stop_requested.is_set():
            super().stop(number)

    def _report(self) -> None:
        self._link.send(Report(self._served, dict(self._sidecar.readiness.components)))

    def _beat(self) -> None:
        self._block.raise_beat()
        self._link.flush()
        asyncio.get_running_loop().call_later(BEAT_INTERVAL_S, self._beat)

    async def _execute(self, order: Order) -> None:
        """Wait until this worker decides by the ordered change, and confirm it."""
        followed = self._sidecar.followed
        is_in_force = followed is not None and await followed.put_in_force(order.position)
        self._link.confirm(Confirmation(order.number, is_in_force))

    def _read_orders(self) -> None:
        for order in self._link.receive():
            self.spawn(self._execute(order))
        if not self._link.is_closed:
            return
        asyncio.get_running_loop().remove_reader(self._link.socket)
        log_event(_log, logging.WARNING, "the supervisor has ended: draining")
        # No supervisor is left to end a drain that hangs, so the kernel does (SIGALRM).

        signal.alarm(math.ceil(self._sidecar.config.settings.drain_timeout_s + ORPHAN_GRACE_S))
        self.stop(signal.SIGTERM)


def _recorder(assignment: Assignment) -> DecisionRecorder | None:
    """Return what hands decisions to the log on this event loop; None = the log is off."""
    if assignment.log_fd == -1:
        return None
    frames = socket.socket(fileno=assignment.log_fd)

    def send(message: bytes) -> bool:
        try:
            frames.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    return DecisionRecorder(
        send,
        assignment.index,
        assignment.name,
        asyncio.get_running_loop(),
        assignment.config.settings.decision_log.sample_allowed,
    )


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
                loaded,
                sidecar,
                logs,
                assignment.index,
                link,
                block,
                assignment.is_successor,
                _recorder(assignment),
            ),
        )
    except START_ERRORS as error:
        link.send(Report(fault=error))
    except LayoutError as error:
        link.send(Report(fault=ListenError(str(error))))
    return EXIT_FAULT


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

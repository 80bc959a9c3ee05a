"""
A worker as a child process: a new interpreter with its own metrics block and a socket to the supervisor.

A fork would copy threads, event loops and gRPC state, which do not survive it. A pidfd (pidfd_open(2))
signals the worker's end and the socket carries its reports, so nothing is polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sidecar.domain.changes import Position
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.observe.shared import WorkerCounts
from sidecar.process.config import Config
from sidecar.process.listeners import Served
from sidecar.process.loop_lag import loop_lag_of
from sidecar.process.supervisor.assignment import Assignment
from sidecar.process.supervisor.messages import (
    PACKET_BYTES_MAX,
    PendingOrders,
    Report,
    read_confirmation,
    read_report,
)
from sidecar.process.supervisor.resources import Priority

MODULE = "sidecar.process.supervisor.worker"
END_GRACE_S = 3.0
"""How long a worker may take after its drain to close and to write its last log lines."""

HIDDEN_VARIABLES = frozenset({"NOTIFY_SOCKET"})
"""Environment variables that workers do not get: systemd's socket is the supervisor's (sd_notify(3))."""

_log = logging.getLogger("sidecar.supervisor")


class FrameSocket(NamedTuple):
    """
    The decision log, as a worker process needs it.

    `fd` is the socket that the worker inherits; `on_ended` receives the worker's number, its name in the
    frames and its counts.
    """

    fd: int
    on_ended: Callable[[int, str, Metrics], None]


class WorkerProcess:
    """Implements `slot.Worker` with a real process."""

    def __init__(
        self,
        index: int,
        config: Config,
        listen: Served,
        counts: WorkerCounts,
        priority: Priority | None = None,
        is_successor: bool = False,
        log: FrameSocket | None = None,
    ) -> None:
        """
        Start worker *index* of *config* on its own endpoints *listen*, with real ports.

        *is_successor* = another process serves these endpoints until this worker is ready; *log* None = it
        records no decisions.

        Raises:
            OSError: the system is out of processes, memory or file descriptors.
        """
        self.end_timeout_s = config.settings.drain_timeout_s + END_GRACE_S
        self.report = Report()
        self.on_report: Callable[[], None] = lambda: None
        self.on_exit: Callable[[int], None] = lambda code: None
        self._ended_lag: tuple[int, int] | None = None
        self._loop = asyncio.get_running_loop()
        self._counts = counts
        self._index = index
        self._log = log
        self._name = secrets.token_hex(8)
        log_fd = -1 if log is None else log.fd
        with contextlib.ExitStack() as undo:
            self._block = counts.add_block()
            undo.callback(counts.retire, self._block)
            self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._link.close)
            with theirs:
                assignment = Assignment(
                    index, config, listen, self._block.fd, theirs.fileno(), is_successor, log_fd, self._name
                )
                self._child = (priority or Priority()).start(lambda: _started(assignment))
            undo.callback(_kill, self._child)
            self.pid = self._child.pid
            self._pidfd = os.pidfd_open(self.pid)
            undo.pop_all()
        self._link.setblocking(False)
        self._orders = PendingOrders(self._link.send)
        self._loop.add_reader(self._link, self._read_messages)
        self._loop.add_reader(self._pidfd, self._on_ended)
        log_event(_log, logging.INFO, "worker started", worker=index, pid=self.pid)

    @property
    def beat(self) -> int:
        """See `slot.Worker`."""
        return self._block.beat

    @property
    def loop_lag(self) -> tuple[int, int]:
        """See `slot.Worker`."""
        return self._ended_lag or loop_lag_of(self._block.values)

    def terminate(self) -> None:
        """See `slot.Worker`."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """See `slot.Worker`."""
        self._signal(signal.SIGKILL)

    def reload(self) -> None:
        """See `slot.Worker`."""
        self._signal(signal.SIGHUP)

    async def put_in_force(self, position: Position, timeout_s: float) -> bool:
        """See `slot.Worker`."""
        if self._orders.is_closed:
            return True
        # A worker reports before it loads the registry: without a report it will load the change anyway.
        self._read_messages()
        return not self.report.components or await self._orders.send(position, timeout_s)

    def _signal(self, number: signal.Signals) -> None:
        # By pidfd: the process id may already be that of another process.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _read_messages(self) -> None:
        """Read the worker's confirmations and reports; the last report counts."""
        report = None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while packet := self._link.recv(PACKET_BYTES_MAX):
                if (confirmation := read_confirmation(packet)) is not None:
                    self._orders.confirm(confirmation)
                else:
                    report = packet
            self._loop.remove_reader(self._link)  # the worker has closed its end; the pidfd signals its exit
        if report is not None:
            self.report = read_report(report)
            self.on_report()

    def _on_ended(self) -> None:
        """The worker has ended: read its last messages, keep its metrics, close everything."""
        try:
            self._read_messages()
        finally:
            code = self._child.wait()  # returns at once: the pidfd is readable
            self._loop.remove_reader(self._link)
            self._loop.remove_reader(self._pidfd)
            self._link.close()
            os.close(self._pidfd)
            if self._log is not None:
                values = Metrics(self._counts.table, self._block.values)
                self._log.on_ended(self._index, self._name, values)
            self._ended_lag = loop_lag_of(self._block.values)
            self._counts.retire(self._block)
            self._orders.close()
            self.on_exit(code)


def _started(assignment: Assignment) -> subprocess.Popen[bytes]:
    fd = assignment.write()
    log_fds = () if assignment.log_fd == -1 else (assignment.log_fd,)
    try:
        return subprocess.Popen(
            [sys.executable, *path_flags(), "-m", MODULE, str(fd)],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES},
            pass_fds=(fd, assignment.counts_fd, assignment.link_fd, *log_fds),
            process_group=0,  # Ctrl-C reaches the supervisor only, which stops the workers
        )
    finally:
        os.close(fd)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a child whose setup failed."""
    child.kill()
    child.wait()


def path_flags() -> tuple[str, ...]:
    """`-P` unless the working directory is on our path: `-m` would put it first."""
    return () if {"", str(Path.cwd())} & set(sys.path) else ("-P",)

"""
A worker as a child process: a fresh interpreter with its own block of counts and a socket to it.

Fresh, because a fork would carry over threads, event loops and grpc's state, none of which survive it.
Its end is told by a pidfd (pidfd_open(2)), its reports come through the socket; nothing is polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sidecar.domain.changes import Position
from sidecar.observe.logs import log_event
from sidecar.observe.shared import WorkerCounts
from sidecar.process.config import Config
from sidecar.process.listeners import Served
from sidecar.process.supervisor.assignment import Assignment
from sidecar.process.supervisor.messages import (
    PACKET_BYTES_MAX,
    OpenOrders,
    Report,
    read_confirmation,
    read_report,
)
from sidecar.process.supervisor.resources import Priority

MODULE = "sidecar.process.supervisor.worker"
END_GRACE_S = 3.0
"""What a worker gets beyond its drain to close and to write its last lines."""

HIDDEN_VARIABLES = frozenset({"NOTIFY_SOCKET"})
"""systemd's socket is for the supervisor alone (sd_notify(3))."""

_log = logging.getLogger("sidecar.supervisor")


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
    ) -> None:
        """
        Start worker *index*, which serves *config* on *listen*, endpoints of its own with real ports.

        *is_successor* = another process serves them until this worker is ready.

        Raises:
            OSError: the system has no process, memory or file descriptor left.
        """
        self.end_timeout_s = config.settings.drain_timeout_s + END_GRACE_S
        self.report = Report()
        self.on_report: Callable[[], None] = lambda: None
        self.on_exit: Callable[[int], None] = lambda code: None
        self._loop = asyncio.get_running_loop()
        self._counts = counts
        with contextlib.ExitStack() as undo:
            self._block = counts.add_block()
            undo.callback(counts.retire, self._block)
            self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._link.close)
            with theirs:
                assignment = Assignment(index, config, listen, self._block.fd, theirs.fileno(), is_successor)
                self._child = (priority or Priority()).start(lambda: _started(assignment))
            undo.callback(_ended, self._child)
            self.pid = self._child.pid
            self._pidfd = os.pidfd_open(self.pid)
            undo.pop_all()
        self._link.setblocking(False)
        self._orders = OpenOrders(self._link.send)
        self._loop.add_reader(self._link, self._hear)
        self._loop.add_reader(self._pidfd, self._end)
        log_event(_log, logging.INFO, "worker started", worker=index, pid=self.pid)

    @property
    def beat(self) -> int:
        """See `slot.Worker`."""
        return self._block.beat

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
        if self._orders.is_over:
            return True
        # Its first report comes before it loads the registry, so one without has yet to load the change.
        self._hear()
        return not self.report.components or await self._orders.give(position, timeout_s)

    def _signal(self, number: signal.Signals) -> None:
        # By its pidfd: a process id may already belong to somebody else.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def _hear(self) -> None:
        """Take in what the worker has confirmed and reported; the last report counts."""
        report = None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while packet := self._link.recv(PACKET_BYTES_MAX):
                if (confirmation := read_confirmation(packet)) is not None:
                    self._orders.hear(confirmation)
                else:
                    report = packet
            self._loop.remove_reader(self._link)  # it has closed its end; the pidfd tells the rest
        if report is not None:
            self.report = read_report(report)
            self.on_report()

    def _end(self) -> None:
        """It is gone: hear its last words, keep its counts, let go of everything."""
        try:
            self._hear()
        finally:
            code = self._child.wait()  # at once: a readable pidfd means that it has ended
            self._loop.remove_reader(self._link)
            self._loop.remove_reader(self._pidfd)
            self._link.close()
            os.close(self._pidfd)
            self._counts.retire(self._block)
            self._orders.end()
            self.on_exit(code)


def _started(assignment: Assignment) -> subprocess.Popen[bytes]:
    told = assignment.write()
    try:
        return subprocess.Popen(
            [sys.executable, *_path_flags(), "-m", MODULE, str(told)],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES},
            pass_fds=(told, assignment.counts_fd, assignment.link_fd),
            process_group=0,  # Ctrl-C is for the supervisor, which tells the workers
        )
    finally:
        os.close(told)


def _ended(child: subprocess.Popen[bytes]) -> None:
    """End a child that cannot be watched."""
    child.kill()
    child.wait()


def _path_flags() -> tuple[str, ...]:
    """`-m` puts the working directory first on the path: not when it is not on ours, either."""
    return () if {"", str(Path.cwd())} & set(sys.path) else ("-P",)

"""
The supervisor's side of the decision log: one writer process, restarted when it ends, stopped last.

All workers share one end of a socket, and the writer has the other. The supervisor keeps both ends open:
while no writer runs, frames wait in the socket, then in the workers. When a worker has ended, the supervisor
reports its number of decisions to the writer, so that the writer knows how many it did not receive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from time import time_ns

from sidecar.domain.decisions import Reason, Verdict
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.config import Config
from sidecar.process.shutdown import STOP_SIGNALS
from sidecar.process.supervisor.log_writer import END, WriterAssignment
from sidecar.process.supervisor.process import HIDDEN_VARIABLES, path_flags
from sidecar.process.supervisor.resources import Priority
from sidecar.process.supervisor.timing import RestartBackoff, Timer
from sidecar.stores.decisions.accounts import ENDED_MAX
from sidecar.stores.decisions.frames import Counts, Frame, Kind
from sidecar.stores.decisions.log_writer import LogState

MODULE = "sidecar.process.supervisor.log_writer"
SOCKET_BYTES = 4 << 20
"""
Room for frames while the writer is busy, about 30,000 rows; Linux grants at most net.core.wmem_max.
"""
MESSAGE_BYTES_MAX = 1 << 20
END_TIMEOUT_S = 20.0
"""How long the writer may take to write the rest after all workers have ended."""
END_FRAMES_TIMEOUT_S = 2.0
RETRY_S = 0.05
RESULTS = ("written", "dropped", "lost", "sampled", "stdout_dropped")
"""The results of rows in the metrics."""

_log = logging.getLogger("sidecar.decision_log")


class LogProcess:
    """The writer process of one supervisor."""

    def __init__(self, config: Config, metrics: Metrics, priority: Priority) -> None:
        """
        Start nothing before `start`.

        Raises:
            OSError: the system is out of file descriptors.
        """
        self._config = config
        self._metrics = metrics
        self._priority = priority
        self._loop = asyncio.get_running_loop()
        self._backoff = RestartBackoff()
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._frames = ours
        self._unsent: deque[bytes] = deque()
        self._ends: dict[str, bytes] = {}  # of workers, until they are accounted for on the disk
        self._state = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._pidfd = -1
        self._started_s = 0.0
        self._restart: Timer | None = None
        self._is_ending = False
        self._ended = asyncio.Event()

    @property
    def frames_fd(self) -> int:
        """The end of the socket that workers inherit."""
        return self._frames.fileno()

    @property
    def pids(self) -> list[int]:
        """The process id of the writer, if one runs."""
        return [] if self._child is None else [self._child.pid]

    def start(self) -> None:
        """Start a writer; if that fails, try again later."""
        self._restart = None
        self._started_s = self._loop.time()
        try:
            self._child, self._link = self._launch()
            self._pidfd = os.pidfd_open(self._child.pid)
        except OSError as error:
            self._restart_later(f"could not be started: {error}")
            return
        self._link.setblocking(False)
        self._loop.add_reader(self._link, self._read_messages)
        self._loop.add_reader(self._pidfd, self._on_ended)
        self._metrics.set("sidecar_decision_log_writer_running", to=1)
        # The writer before may have read these without writing them.
        self._unsent = deque(self._ends.values())
        self._send_frames()

    def worker_ended(self, worker: int, process: str, values: Metrics) -> None:
        """Tell the writer that a worker has ended, whose counts are *values*."""
        now_us = time_ns() // 1_000
        allowed, refused = decided(values)
        frame = Frame(worker, process, now_us, now_us, Counts(allowed, refused), kind=Kind.ENDED)
        self._ends[process] = frame.packed()
        if len(self._ends) > ENDED_MAX:
            del self._ends[next(iter(self._ends))]
        self._unsent.append(frame.packed())
        self._send_frames()

    async def end(self) -> None:
        """Have the writer write everything and end; kill it after END_TIMEOUT_S."""
        self._is_ending = True
        if self._restart is not None:
            self._restart.cancel()
            self.start()  # what the workers sent last is worth one more writer
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_FRAMES_TIMEOUT_S):
                while self._unsent:
                    await asyncio.sleep(RETRY_S)
                    self._send_frames()
        if self._child is not None:
            assert self._link is not None
            with contextlib.suppress(OSError):  # it has just ended
                self._link.send(END)
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self._ended.wait()
            except TimeoutError:
                log_event(_log, logging.ERROR, "decision log: the writer did not end in time", killed=True)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                await self._ended.wait()
        self._frames.close()
        self._theirs.close()

    def _launch(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        settings, log = self._config.settings.decision_log, self._config.settings.log
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            assignment = WriterAssignment(
                path="" if settings.path is None else str(self._config.path(settings.path)),
                name=settings.name or socket.gethostname()[:64],
                mask=settings.mask,
                flush_interval_s=settings.flush_interval_s,
                keep_days=settings.keep_days,
                keep_bytes=settings.keep_bytes,
                has_stdout=settings.stdout == "json",
                log_level=log.level,
                log_format=log.format,
                rows_fd=self._theirs.fileno(),
                link_fd=theirs.fileno(),
                state=self._state,
            )
            fd = assignment.write()
            try:
                child = self._priority.start(lambda: _started(assignment, fd))
            except OSError:
                link.close()
                raise
            finally:
                os.close(fd)
        log_event(_log, logging.INFO, "decision log: writer started", pid=child.pid, path=assignment.path)
        return child, link

    def _read_messages(self) -> None:
        assert self._link is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while message := self._link.recv(MESSAGE_BYTES_MAX):
                content = json.loads(message)
                if isinstance(content, list):
                    self._state = message.decode()
                    for process in LogState.read(message).before.ended:
                        self._ends.pop(process, None)
                else:
                    self._count(content)
            self._loop.remove_reader(self._link)

    def _count(self, totals: dict[str, int]) -> None:
        """Export the writer's totals; counters never decrease."""
        metrics = self._metrics
        for result in RESULTS:
            slot = metrics.slot("sidecar_decision_log_rows_total", result)
            metrics.values[slot] = max(metrics.values[slot], totals[result])
        metrics.set("sidecar_decision_log_failing", to=int(totals["is_failing"]))
        metrics.set("sidecar_decision_log_bytes", to=totals["kept_bytes"])

    def _on_ended(self) -> None:
        assert self._child is not None and self._link is not None
        self._read_messages()
        code = self._child.wait()  # returns at once: the pidfd is readable
        self._loop.remove_reader(self._link)
        self._loop.remove_reader(self._pidfd)
        self._link.close()
        os.close(self._pidfd)
        self._child = None
        self._metrics.set("sidecar_decision_log_writer_running", to=0)
        if self._is_ending:
            self._ended.set()
        else:
            self._restart_later(f"ended with exit code {code}")

    def _restart_later(self, problem: str) -> None:
        self._metrics.add("sidecar_decision_log_writer_restarts_total")
        delay_s = self._backoff.next_s(self._loop.time() - self._started_s)
        if not self._is_ending:
            self._restart = self._loop.call_later(delay_s, self.start)
        log_event(
            _log,
            logging.ERROR,
            "decision log: the writer restarts; decisions go on, rows wait within a bound",
            after_s=round(delay_s, 3),
            problem=problem,
        )

    def _send_frames(self) -> None:
        """Send the frames about ended workers; if the socket is full, try again later."""
        try:
            while self._unsent:
                self._frames.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            if not self._is_ending:
                self._loop.call_later(RETRY_S, self._send_frames)


def decided(metrics: Metrics) -> tuple[int, int]:
    """Return how many requests the process with *metrics* allowed and refused; each has a row."""
    by_reason = {
        reason: metrics.value("sidecar_decisions_total", reason.verdict.value, reason.label)
        for reason in Reason
    }
    allowed = sum(count for reason, count in by_reason.items() if reason.verdict is Verdict.ALLOW)
    refused = sum(by_reason.values()) - allowed
    calls = {
        result: metrics.value("sidecar_rate_limit_calls_total", result)
        for result in ("ok", "over_limit", "unavailable")
    }
    return allowed + calls["ok"], refused + calls["over_limit"] + calls["unavailable"]


def _started(assignment: WriterAssignment, fd: int) -> subprocess.Popen[bytes]:
    """
    Start a writer that no stop signal reaches: service managers signal every process of a service.

    The writer inherits the signals that are blocked here; it ends after the workers.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return _popen(assignment, fd)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _popen(assignment: WriterAssignment, fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *path_flags(), "-m", MODULE, str(fd)],
        stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES},
        pass_fds=(fd, assignment.rows_fd, assignment.link_fd),
        process_group=0,
    )

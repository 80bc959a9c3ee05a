"""
The process that writes the decision log: `python -m sidecar.process.supervisor.log_writer <fd>`.

It reads frames from a socket that all workers share, and writes batches in a thread, so that reading goes on
while the disk works. It ends when the supervisor says so, or when supervisor and workers have all ended; in
both cases it first writes everything that was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, time_ns
from typing import TYPE_CHECKING, TypeVar

from sidecar.domain.path_masks import PathMasks
from sidecar.observe.logs import log_event, set_up_logging
from sidecar.process.supervisor.stdout_lines import StdoutLines
from sidecar.stores.decisions.frames import FRAME_BYTES_MAX
from sidecar.stores.decisions.log_folder import LogFolder
from sidecar.stores.decisions.log_writer import LogState, LogWriter
from sidecar.stores.decisions.missing import trim_missing
from sidecar.stores.decisions.parquet import MEMORY_LIMIT, connect
from sidecar.stores.decisions.upkeep import (
    DAY_US,
    MERGE_MEMORY_LIMIT,
    ROLLUP_DAYS,
    expire,
    expire_abandoned,
    merge,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BATCH_ROWS_MAX = 50_000
"""A batch is written early at this size: it takes about 0.2 s, and its file some MB."""
FRAMES_PER_READ_MAX = 64
"""Frames that are read before timers and signals get their turn."""
READ_PAUSE_S = 0.02
"""How long frames gather in the socket once all are read: waking up costs as much as ten rows."""
TICK_S = 0.25
"""How often the writer checks whether a batch is due, and reports its totals."""
UPKEEP_INTERVAL_S = 20.0
LAST_BATCH_ATTEMPTS = 3
END = b"end"
"""The supervisor's order to write everything and end. Stop signals are blocked: see `log_process`."""
NICENESS = 10
"""Beside decisions on the same core the writer gets a tenth of it, which suffices at their highest rate."""
UPKEEP_NICENESS = 19
"""Merging takes longer than writing, and can wait."""

Result = TypeVar("Result")

_log = logging.getLogger("sidecar.decision_log")


@dataclass(frozen=True, slots=True)
class WriterAssignment:
    """
    What the supervisor passes to a writer at its start.

    `path` '' = no files. `rows_fd` is the socket of the frames, `link_fd` the one to the supervisor. `state`
    is the last `LogState` of the writer that this one replaces, '' = it is the first of this supervisor.
    """

    path: str
    name: str
    mask: Sequence[str]
    flush_interval_s: float
    keep_days: int
    keep_bytes: int
    has_stdout: bool
    log_level: str
    log_format: str
    rows_fd: int
    link_fd: int
    state: str = ""

    def write(self) -> int:
        """Write the assignment to a memfd for the writer to inherit; the caller closes it after the start."""
        fd = os.memfd_create("sidecar-log-writer", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(fd), "w") as stream:
            json.dump(asdict(self), stream)
        return fd


def read_assignment(fd: int) -> WriterAssignment:
    """Read the assignment in the memfd *fd* and close it."""
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd) as stream:
        return WriterAssignment(**json.load(stream))


def wall_us() -> int:
    """Microseconds since the epoch."""
    return time_ns() // 1_000


class Connection:
    """A connection to DuckDB for one thread, opened at its first use."""

    def __init__(self, folder: LogFolder | None, memory_limit: str) -> None:
        """Open nothing yet; the connection writes files of *folder*."""
        self._folder = folder
        self._memory_limit = memory_limit
        self._opened: DuckDBPyConnection | None = None

    def __call__(self) -> DuckDBPyConnection:
        """Return the connection."""
        assert self._folder is not None
        if self._opened is None:
            self._opened = connect(self._folder.path, self._memory_limit)
        return self._opened

    def interrupt(self) -> None:
        """End a running statement, from another thread."""
        if self._opened is not None:
            self._opened.interrupt()


class LogWriterProcess:
    """One run of the writer."""

    def __init__(self, assignment: WriterAssignment) -> None:
        """
        Lock the folder, and continue where the last writer ended.

        Raises:
            OSError: the folder cannot be written.
        """
        self._assignment = assignment
        self._rows = socket.socket(fileno=assignment.rows_fd)
        self._link = socket.socket(fileno=assignment.link_fd)
        self._link.setblocking(False)
        state = LogState.read(assignment.state.encode()) if assignment.state else None
        self._folder: LogFolder | None = None
        if assignment.path:
            preferred = "" if state is None else state.folder
            self._folder = LogFolder.open(Path(assignment.path), assignment.name, wall_us(), preferred)
        self._stdout = StdoutLines(sys.stdout.fileno()) if assignment.has_stdout else None
        self._writer = LogWriter(self._folder, PathMasks(assignment.mask))
        if self._stdout is not None:
            self._writer.on_rows = self._stdout.add
        self._writer.restore(state)
        self._wake = asyncio.Event()
        self._is_ending = False
        self._is_orphan = False
        self._problem = ""
        self._failures = 0
        self._kept_bytes = 0
        self._batch_connection = Connection(self._folder, MEMORY_LIMIT)
        self._upkeep_connection = Connection(self._folder, MERGE_MEMORY_LIMIT)
        self._threads = (ThreadPoolExecutor(1), ThreadPoolExecutor(1, initializer=_yield_to_all))

    async def run(self) -> int:
        """Write until the end; return the exit code."""
        loop = asyncio.get_running_loop()
        self._await_frames()
        loop.add_reader(self._link, self._read_order)
        upkeep = loop.create_task(self._run_upkeep()) if self._folder is not None else None
        due_s = monotonic() + self._assignment.flush_interval_s
        while not self._is_ending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            is_full = self._writer.buffer.rows >= BATCH_ROWS_MAX and not self._problem
            if monotonic() >= due_s or is_full:
                await self._write()
                due_s = monotonic() + self._assignment.flush_interval_s
            self._tell_totals()
        loop.remove_reader(self._rows)
        self._read_rest()
        if upkeep is not None:
            self._upkeep_connection.interrupt()
            upkeep.cancel()
            await asyncio.wait((upkeep,))
        return await self._write_rest()

    async def _write_rest(self) -> int:
        """Write what is left, and record a clean end if all of it is on the disk."""
        if self._is_orphan:
            self._writer.note_orphans(wall_us())
        for _ in range(LAST_BATCH_ATTEMPTS):
            if await self._write(is_ending=True):
                break
        if self._stdout is not None:
            self._stdout.close()
        self._tell_totals()
        if self._problem:
            log_event(_log, logging.ERROR, "decision log: rows lost at shutdown", problem=self._problem)
            return 1
        if self._folder is not None:
            self._folder.close()
        return 0

    async def _write(self, is_ending: bool = False) -> bool:
        """Write a batch in its thread; False = it failed, and its rows are kept."""
        batch = self._writer.cut(is_ending)
        if batch is None:
            return True
        self._send(batch.state.packed())
        try:
            await self._in_thread(0, lambda: self._writer.write(batch, self._batch_connection()))
        except OSError as error:
            self._writer.failed(batch)
            self._failed(error)
            return False
        self._writer.written(batch)
        if self._problem:
            log_event(_log, logging.INFO, "decision log: written again", rows=batch.rows)
            self._problem = ""
        return True

    async def _run_upkeep(self) -> None:
        while True:
            try:
                await self._in_thread(1, self._upkeep)
            except OSError as error:
                log_event(
                    _log, logging.WARNING, "decision log: files not merged; retrying", problem=str(error)
                )
            except Exception:  # a bug must not end the upkeep
                _log.exception("decision log: upkeep failed")
            await asyncio.sleep(UPKEEP_INTERVAL_S)

    def _upkeep(self) -> None:
        """Merge and remove files; for the thread of upkeep."""
        kept, now_us = self._assignment, wall_us()
        assert self._folder is not None
        folder = self._folder.path
        while not self._is_ending and merge(folder, self._upkeep_connection()):
            pass
        self._kept_bytes = expire(folder, now_us, kept.keep_days, kept.keep_bytes, self._upkeep_connection())
        expire_abandoned(folder, now_us, kept.keep_days, self._upkeep_connection())
        trim_missing(folder, now_us - ROLLUP_DAYS * DAY_US)

    async def _in_thread(self, number: int, job: Callable[[], Result]) -> Result:
        """Run *job* in thread 0 (batches) or 1 (upkeep), each with its own connection."""
        return await asyncio.get_running_loop().run_in_executor(self._threads[number], job)

    def _await_frames(self) -> None:
        if not self._is_ending:
            asyncio.get_running_loop().add_reader(self._rows, self._read)

    def _read(self) -> None:
        """Read the frames that have arrived, and look for more after READ_PAUSE_S."""
        try:
            for _ in range(FRAMES_PER_READ_MAX):
                message = self._rows.recv(FRAME_BYTES_MAX, socket.MSG_DONTWAIT)
                if not message:  # supervisor and workers have ended
                    self._is_orphan = True
                    self._end()
                    return
                self._receive(message)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._rows)
            loop.call_later(READ_PAUSE_S, self._await_frames)
        if self._writer.buffer.rows >= BATCH_ROWS_MAX:
            self._wake.set()

    def _read_order(self) -> None:
        with contextlib.suppress(OSError):
            order = self._link.recv(len(END))
            if order == END:
                self._end()
            else:  # the supervisor has ended; the workers still drain
                asyncio.get_running_loop().remove_reader(self._link)

    def _read_rest(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while message := self._rows.recv(FRAME_BYTES_MAX, socket.MSG_DONTWAIT):
                self._receive(message)

    def _receive(self, message: bytes) -> None:
        try:
            self._writer.receive(message)
        except ValueError as error:  # a bug must not end the log
            log_event(_log, logging.ERROR, "decision log: frame not readable", problem=str(error))

    def _end(self) -> None:
        self._is_ending = True
        self._wake.set()

    def _failed(self, error: OSError) -> None:
        self._failures += 1
        if not self._problem:
            log_event(
                _log,
                logging.ERROR,
                "decision log: rows not written; they are kept within a bound, and written later",
                problem=str(error),
            )
        self._problem = str(error)

    def _tell_totals(self) -> None:
        """Tell the supervisor what it shows as metrics."""
        totals = {
            **self._writer.totals._asdict(),
            "stdout_dropped": 0 if self._stdout is None else self._stdout.dropped,
            "failures": self._failures,
            "is_failing": bool(self._problem),
            "kept_bytes": self._kept_bytes,
        }
        self._send(json.dumps(totals).encode())

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the supervisor is busy, or has ended
            self._link.send(message)


def main(fd: int) -> int:
    """Run the writer that the assignment in memfd *fd* describes; return its exit code."""
    assignment = read_assignment(fd)
    with contextlib.suppress(OSError):
        # A thread of this policy never preempts one that decides; threads that start later inherit it.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.nice(NICENESS)
    logs = set_up_logging(assignment.log_level, assignment.log_format, sys.stderr)
    try:
        return asyncio.run(_run(assignment))
    except OSError as error:
        log_event(_log, logging.ERROR, "decision log: the writer cannot start", problem=str(error))
        return 1
    finally:
        logs.close()


def _yield_to_all() -> None:
    """Give this thread what other threads leave."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, UPKEEP_NICENESS)  # on Linux of a thread, 0 = this one


async def _run(assignment: WriterAssignment) -> int:
    return await LogWriterProcess(assignment).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

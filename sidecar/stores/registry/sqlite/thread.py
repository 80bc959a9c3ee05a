"""
The thread that accesses the registry file, with a bounded queue of calls; the event loop never blocks.

Writes that wait in the queue are made in one transaction, each in its own savepoint: they share one sync of
the disk, and each is still atomic.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sidecar.stores.registry.protocol import (
    RegistryClosedError,
    RegistryError,
    RegistryOverloadedError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from sidecar.stores.registry.sqlite.file import FileWatch
from sidecar.stores.registry.sqlite.transactions import Durability, Job, Work, perform

QUEUE_MAX = 1_024
"""Maximum number of waiting calls: well below a second of work at thousands of calls per second."""
BATCH_MAX = 256
"""Maximum number of writes per transaction: bounds how long other processes wait for the file."""
POLL_INTERVAL_S = 0.1
"""How often the file is checked for changes of other processes while a caller waits for changes."""

Result = TypeVar("Result")


class SqliteThread:
    """Runs work on the registry file, in the order of the calls."""

    def __init__(
        self,
        open_database: Callable[[], sqlite3.Connection],
        on_change: Callable[[], None],
        queue_max: int = QUEUE_MAX,
        poll_interval_s: float = POLL_INTERVAL_S,
        path: Path | None = None,
    ) -> None:
        """
        Open the file with *open_database* in the thread.

        *on_change* is called on the event loop after writes, and while watching after writes of other
        processes. Calls fail once the file at *path* is no longer the one that was opened.
        """
        self._open = open_database
        self._path = path
        self._on_change = on_change
        self._queue_max = queue_max
        self._poll_interval_s = poll_interval_s
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._turn = threading.Condition()
        self._jobs: deque[Job[Any]] = deque()  # guarded by _turn, as is all below
        self._running: list[Job[Any]] = []
        self._is_closing = False
        self._is_watching = False
        self._fault: Exception | None = None

    async def start(self) -> None:
        """
        Start the thread, which opens the file.

        Raises:
            RegistryError: the file cannot be opened.
        """
        threading.Thread(target=self._run, name="registry", daemon=True).start()
        await self._opened

    async def call(self, work: Work[Result], durability: Durability, timeout_s: float) -> Result:
        """
        Run *work* in the thread.

        Raises:
            RegistryError: the registry is closed or overloaded, the call timed out, or the file failed.
        """
        job: Job[Result] = Job(work, durability, self._loop.create_future())
        with self._turn:
            if self._is_closing:
                raise self._closed()
            if len(self._jobs) >= self._queue_max:
                raise RegistryOverloadedError(
                    f"too many registry calls are waiting (limit {self._queue_max}); retry later"
                )
            self._jobs.append(job)
            self._turn.notify()
        try:
            async with asyncio.timeout(timeout_s):
                return await job.future
        except TimeoutError:
            with self._turn:
                may_have_happened = job.has_begun and job.durability is not Durability.READ
            raise RegistryTimeoutError(
                f"the registry did not answer within {timeout_s:g} s", may_have_happened=may_have_happened
            ) from None

    def watch(self, is_watching: bool) -> None:
        """Start or stop checking for changes of other processes."""
        with self._turn:
            self._is_watching = is_watching
            self._turn.notify()

    async def close(self, timeout_s: float) -> None:
        """Finish the waiting calls, close the file and end the thread."""
        with self._turn:
            self._is_closing = True
            self._turn.notify()
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self._ended)

    def _run(self) -> None:
        try:
            database = self._open()
        except BaseException as error:  # `start` raises it
            self._post(_resolve, self._opened, None, error)
            return
        self._post(_resolve, self._opened, None, None)
        try:
            self._work(database)
        except Exception as error:  # every later call reports it
            self._fault = error
        finally:
            database.close()
            self._fail_remaining()
            self._post(_resolve, self._ended, None, None)

    def _work(self, database: sqlite3.Connection) -> None:
        seen = _data_version(database)
        watch = FileWatch(self._path) if self._path is not None else None
        while (jobs := self._next_jobs()) is not None:
            if watch is not None:
                watch.check()
            has_written = False
            if jobs:
                has_written = perform(database, jobs)
                self._post(self._deliver, jobs)
            now_seen = _data_version(database)
            if has_written or now_seen != seen:
                self._post(self._on_change)
            seen = now_seen

    def _next_jobs(self) -> list[Job[Any]] | None:
        """The next read, or all waiting writes; [] = check for changes, None = closing."""
        with self._turn:
            if not self._jobs and not self._is_closing:
                self._turn.wait(self._poll_interval_s if self._is_watching else None)
            if not self._jobs:
                return None if self._is_closing else []
            jobs = self._running = [self._take()]
            durability = jobs[0].durability
            while durability is not Durability.READ and len(jobs) < BATCH_MAX:
                if not self._jobs or self._jobs[0].durability is not durability:
                    break
                jobs.append(self._take())
            return jobs

    def _take(self) -> Job[Any]:
        job = self._jobs.popleft()
        job.has_begun = True
        return job

    def _fail_remaining(self) -> None:
        """Fail all unfinished calls and refuse new ones, because the thread ends."""
        with self._turn:
            self._is_closing = True
            jobs = [*self._running, *self._jobs]
            self._jobs.clear()
        for job in jobs:
            if job.outcome is None:
                job.outcome = self._closed()
        self._post(self._deliver, jobs)

    def _closed(self) -> RegistryError:
        if self._fault is None:
            return RegistryClosedError("the registry was closed")
        return RegistryUnavailableError(
            f"the registry file failed ({self._fault}) and stays closed: restart the sidecar"
        )

    def _deliver(self, jobs: list[Job[Any]]) -> None:
        for job in jobs:
            if isinstance(job.outcome, BaseException):
                _resolve(job.future, None, job.outcome)
            else:
                _resolve(job.future, job.outcome, None)

    def _post(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop was closed: no caller waits any more
            return


def _data_version(database: sqlite3.Connection) -> int:
    """A number that changes when another connection has written."""
    (version,) = database.execute("PRAGMA data_version").fetchone()
    return int(version)


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)

"""Applies changes of files: at once on SIGHUP, otherwise within two seconds."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from sidecar.observe.file_reading import ReadEpisode
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.background import BackgroundThread
from sidecar.sources.file_faults import FileFaultsError

POLL_INTERVAL_S = 1.0
SETTLE_INTERVAL_S = 0.25
SLOW_LOAD_S = 30.0
"""How long a load may take before a warning: the files are probably on a dead network disk."""

Loaded = TypeVar("Loaded")


class WatchedSource(ABC):
    """
    Files that are read repeatedly. Not thread-safe.

    Changed files are read only after two polls in a row found them unchanged: a file that is being written in
    place may be valid and yet lack half of its content. A subclass sets `read_stamp` before it reads, and
    `is_unreadable` afterwards.
    """

    def __init__(self, file: str) -> None:
        """Read what messages call *file*."""
        self.file = file
        self.read_stamp: object = None
        """The stamp of the files at the last read; `UNREAD` = the next poll reads them."""
        self._unsettled_stamp: object = None
        self.cancelled = threading.Event()
        self.is_settling = False
        """True = the last poll saw a change; the files are read once a poll finds them unchanged."""
        self.is_unreadable = False
        """True = the files could not be read the last time: each poll tries again."""

    def cancel(self) -> None:
        """Stop loading within milliseconds, permanently; callable from any thread."""
        self.cancelled.set()

    @abstractmethod
    def stamp(self) -> object:
        """A value that differs after each change of the files; None = they do not exist."""

    def has_settled_change(self) -> bool:
        """Whether the files have changed and are no longer being written."""
        if self.is_unreadable:
            return True
        stamp = self.stamp()
        if stamp == self.read_stamp:
            self.is_settling = False
            return False
        if not self.is_settling or stamp != self._unsettled_stamp:
            self.is_settling = True
            self._unsettled_stamp = stamp
            return False
        return True


UNREAD = object()
"""The stamp of unread files: it equals no other stamp, so the next poll reads them."""


def file_stamp(path: Path) -> tuple[int, int, int, int] | None:
    """A value that differs after each change of the file at *path*; None = it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


class FileWatch(ABC, Generic[Loaded]):
    """
    Puts new content into force when the files of a source change.

    A background thread polls, reads and compiles the files; the event loop only swaps the result. After any
    failure the previous content stays in force.
    """

    def __init__(
        self,
        source: WatchedSource,
        kind: str,
        name: str,
        metrics: Metrics,
        log: logging.Logger,
        poll_interval_s: float,
    ) -> None:
        """Watch *source*, whose kind is one of `FILE_KINDS` and which messages call *name*."""
        self._source = source
        self._kind = kind
        self._name = name
        self._metrics = metrics
        self._log = log
        self._poll_interval_s = poll_interval_s
        self._episode = ReadEpisode(metrics, kind, source.file)
        self._requested = asyncio.Event()
        self._thread = BackgroundThread(kind)

    @abstractmethod
    def _loader(self, is_asked: bool) -> Callable[[], Loaded | None]:
        """The function that the thread calls to read the source; *is_asked* = even if it is unchanged."""

    @abstractmethod
    def _count(self, result: str) -> None:
        """Count a reload with the result 'ok', 'unchanged' or 'failed'."""

    @abstractmethod
    async def _put_in_force(self, loaded: Loaded) -> None:
        """Use *loaded* from now on."""

    def _refused(self, error: FileFaultsError) -> None:
        """Called after the mistakes in the new content were logged."""

    def _read(self) -> None:
        """Called when the content of the files is in force."""

    def reload(self) -> None:
        """Read the files at once, even if they seem unchanged."""
        self._requested.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                is_asked = await self._wait()
                await self._take_up(is_asked)
        finally:
            self._source.cancel()
            self._thread.close()

    async def _wait(self) -> bool:
        """Wait until the next poll is due or a reload is requested; True = a reload was requested."""
        interval_s = min(SETTLE_INTERVAL_S, self._poll_interval_s)
        if not self._source.is_settling:
            interval_s = self._poll_interval_s
        try:
            await asyncio.wait_for(self._requested.wait(), interval_s)
        except TimeoutError:
            return False
        self._requested.clear()
        return True

    async def _take_up(self, is_asked: bool) -> None:
        loading = self._thread.run(self._loader(is_asked))
        while not (await asyncio.wait({loading}, timeout=SLOW_LOAD_S))[0]:
            log_event(self._log, logging.WARNING, f"reading the {self._name} is slow", file=self._source.file)
        try:
            loaded = loading.result()
        except FileFaultsError as error:
            if error.is_unreadable:
                if not self._episode.is_open:
                    self._count("failed")
                self._episode.begin(str(error))
                return
            self._episode.end()
            self._count("failed")
            log_event(
                self._log,
                logging.ERROR,
                f"{self._name} file rejected; the previous {self._name} stays in force",
                file=self._source.file,
                mistakes=error.total,
                faults=[str(fault) for fault in error.faults],
            )
            self._refused(error)
        except Exception:  # a bug must not end the watch
            self._count("failed")
            self._log.exception(f"loading the {self._name} failed; the previous one stays in force")
        else:
            if not self._source.is_unreadable:
                self._episode.end()
            if loaded is not None:
                self._count("ok")
                await self._put_in_force(loaded)
                self._read()
            elif is_asked:
                self._count("unchanged")
                log_event(self._log, logging.INFO, f"{self._name} unchanged", file=self._source.file)
                self._read()

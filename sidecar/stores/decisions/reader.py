"""
Reads the decision log of a fleet: the files of every sidecar that writes to one folder.

A query opens only the files whose names say that they may hold rows of the asked span. It runs in the thread
that calls it, on one thread of DuckDB with bounded memory, and is interrupted at its deadline. While it runs,
compaction and retention may remove a file; then the query lists the files again and starts over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sidecar.stores.decisions.filters import LATEST_US, DecisionFilters, Value
from sidecar.stores.decisions.log_folder import host_of
from sidecar.stores.decisions.missing import MissingSpan, read_missing
from sidecar.stores.decisions.pages import Cursor, LoggedDecision, NewestRows
from sidecar.stores.decisions.queries import (
    DecisionLogError,
    FilesChangedError,
    LogFile,
    create_view,
    query_deadline,
)
from sidecar.stores.decisions.recorded import Recorded, recorded, recorded_since
from sidecar.stores.decisions.rollup import counted_segments, create_rollups
from sidecar.stores.decisions.segments import Contents, Segment, segments_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_MIB_MAX = 256
"""Memory of one query; one that needs more fails instead of the process."""
LISTINGS_MAX = 5
"""How often a query starts over because a file was removed meanwhile."""
_SEARCH_SHARE = 0.7
"""The share of a page's deadline for finding its rows; the rest is for reading them."""

Result = TypeVar("Result")


class DecisionPage(NamedTuple):
    """
    A page of the log, newest first; see `FoundRows`.

    `recorded` says how far the log was recorded: ask for what was recorded since.
    """

    decisions: list[LoggedDecision]
    next_after: Cursor | None
    recorded: Recorded


def rows_segments(segments: Iterable[Segment]) -> Iterable[Segment]:
    """Return the files with rows."""
    return (segment for segment in segments if segment.contents is Contents.ROWS)


class DecisionReader:
    """Reads the log in a folder; threads may share a reader, because each query has its own connection."""

    def __init__(self, folder: Path, memory_mib_max: int = MEMORY_MIB_MAX) -> None:
        """Read the sub-folders of *folder*; each query uses at most *memory_mib_max*."""
        self.folder = folder
        self._memory_mib_max = memory_mib_max
        self._stopped = threading.Event()

    def folders(self) -> list[Path]:
        """
        Return the sub-folders, one for each sidecar that writes to the folder, by name.

        Raises:
            DecisionLogError: the folder cannot be read, or is itself the sub-folder of a sidecar.
        """
        try:
            found = sorted(path for path in self.folder.iterdir() if path.is_dir())
            is_one_sidecar = not found and bool(segments_of(self.folder))
        except OSError as error:
            raise _unreadable(self.folder, error) from None
        if is_one_sidecar:
            raise DecisionLogError(
                f"{self.folder} has the files of one sidecar; pass the folder above it,"
                f" {self.folder.resolve().parent}"
            )
        return found

    def hosts(self) -> set[str]:
        """
        Return the names of the hosts whose sidecars write to the folder.

        A sub-folder has the host's name, or its writer notes the name in the lock file.

        Raises:
            DecisionLogError: the folder cannot be read.
        """
        folders = self.folders()
        return {name for folder in folders for name in (folder.name, host_of(folder)) if name}

    def missing(self, from_us: int = 0, to_us: int = LATEST_US) -> list[MissingSpan]:
        """
        Return the spans in which rows are missing and that have a time of *from_us* to *to_us*, oldest first.

        Raises:
            DecisionLogError: the folder cannot be read.
        """
        spans = []
        for folder in self.folders():
            try:
                spans += read_missing(folder)
            except OSError as error:
                raise _unreadable(folder, error) from None
        return sorted(span for span in spans if span.overlaps(from_us, to_us))

    def page(
        self,
        filters: DecisionFilters,
        limit: int,
        deadline_s: float,
        after: Cursor | None = None,
        since: Recorded | None = None,
    ) -> DecisionPage:
        """
        Return the *limit* newest rows that *filters* admit, older than *after* and recorded after *since*.

        Raises:
            DecisionLogTimeoutError: within *deadline_s* not even the newest files were searched.
            DecisionLogError: the log cannot be read.
        """
        ends_at = monotonic() + deadline_s
        to_us = min(filters.to_us, after.time_us + 1) if after else filters.to_us
        conditions = filters.conditions() + (after.conditions() if after else [])

        def read() -> DecisionPage:
            every = self._files(0, LATEST_US + 1)
            files, of_news = (every, []) if since is None else recorded_since(every, since)
            wanted = [file for file in files if file.segment.overlaps(filters.from_us, to_us - 1)]
            # An id occurs once, so a second row is not looked for.
            count = limit + 1 if filters.decision_id is None else 1
            with self._connected() as connection:
                rows = NewestRows(
                    connection, wanted, conditions + of_news, count, self._stopped, filters.indexed_value
                )
                is_whole = rows.search(ends_at - (1 - _SEARCH_SHARE) * deadline_s)
                return DecisionPage(*rows.page(is_whole, ends_at), recorded(every))

        return _retried(read)

    def sql(
        self,
        query: str,
        parameters: Sequence[Value] | Mapping[str, Value],
        deadline_s: float,
        from_us: int = 0,
        to_us: int = LATEST_US,
        spill: tuple[Path, int] | None = None,
    ) -> list[tuple[Any, ...]]:
        """
        Return the rows of *query*, which reads the relation `decisions`.

        *spill* is a folder for temporary files and their maximum size in bytes; None = memory only.

        `decisions` has the columns of `COLUMNS` and `sidecar`. It holds all rows of the files that may have
        rows from *from_us* to *to_us*; the query itself compares `time`.

        Raises:
            DecisionLogTimeoutError: it took longer than *deadline_s*.
            DecisionLogError: the log cannot be read, or the query needs too much memory.
        """

        def read() -> list[tuple[Any, ...]]:
            files = self._files(from_us, to_us)
            with (
                self._connected(spill) as connection,
                query_deadline(connection, monotonic() + deadline_s, self._stopped),
            ):
                create_view(connection, files)
                return connection.execute(query, parameters).fetchall()

        return _retried(read)

    def rollup_sql(
        self,
        query: str,
        parameters: Mapping[str, Value],
        deadline_s: float,
        from_us: int,
        to_us: int,
        integrations: Sequence[str],
    ) -> list[tuple[Any, ...]]:
        """
        Return the rows of *query*, which reads the relation `rollups` of *integrations*.

        `rollups` has the columns `rollup.COLUMNS`. It holds the counts of files that may have rows of the
        span, also of files without a rollup yet. The query itself compares `hour`, and adds up `count`.

        Raises:
            DecisionLogTimeoutError: it took longer than *deadline_s*.
            DecisionLogError: the log cannot be read, or the query needs too much memory.
        """

        def read() -> list[tuple[Any, ...]]:
            files = self._files(from_us, to_us, counted_segments)
            paths = {
                contents: [str(file.path) for file in files if file.segment.contents is contents]
                for contents in Contents
            }
            with (
                self._connected() as connection,
                query_deadline(connection, monotonic() + deadline_s, self._stopped),
            ):
                create_rollups(connection, paths[Contents.ROLLUP], paths[Contents.ROWS], integrations)
                return connection.execute(query, parameters).fetchall()

        return _retried(read)

    def begins_us(
        self, choose: Callable[[Iterable[Segment]], Iterable[Segment]] = counted_segments
    ) -> int | None:
        """
        Return the time of the oldest row, in µs since the epoch; None = the log is empty.

        *choose* `rows_segments` = only of rows that still exist; rollups are older.

        Raises:
            DecisionLogError: the folder cannot be read.
        """
        files = self._files(0, LATEST_US, choose)
        return min((file.segment.from_us for file in files), default=None)

    def stop(self) -> None:
        """End the queries that run in other threads, and all later ones, as if their deadline had come."""
        self._stopped.set()

    def _files(
        self,
        from_us: int,
        to_us: int,
        choose: Callable[[Iterable[Segment]], Iterable[Segment]] = rows_segments,
    ) -> list[LogFile]:
        """The files that *choose* returns and that may have rows of the span, the newest first."""
        found = []
        for folder in self.folders():
            try:
                segments = _listed(folder)
            except FileNotFoundError:  # the sub-folder was removed meanwhile
                continue
            except OSError as error:
                raise _unreadable(folder, error) from None
            indexes = {segment for segment in segments if segment.contents is Contents.IDS}
            found += [
                LogFile(segment, folder / segment.name, folder / index.name if index in indexes else None)
                for segment in choose(segments)
                if segment.overlaps(from_us, to_us - 1)
                for index in [segment._replace(contents=Contents.IDS)]
            ]
        return sorted(found, key=lambda file: -file.segment.to_us)

    @contextmanager
    def _connected(self, spill: tuple[Path, int] | None = None) -> Iterator[DuckDBPyConnection]:
        """A separate connection: DuckDB frees all memory of a query when it is closed."""
        import duckdb

        config: dict[str, Any] = {
            "threads": 1,
            "memory_limit": f"{self._memory_mib_max}MiB",
            "temp_directory": "" if spill is None else str(spill[0]),  # not the working directory
            "max_temp_directory_size": "0B" if spill is None else f"{spill[1]}B",
            "autoinstall_known_extensions": False,
        }
        with duckdb.connect(config=config) as connection:
            try:
                yield connection
            except duckdb.OutOfMemoryException:
                raise DecisionLogError(
                    f"the query needs more than {self._memory_mib_max} MiB of memory; ask for a shorter span"
                ) from None


def _unreadable(folder: Path, error: OSError) -> DecisionLogError:
    return DecisionLogError(f"the decision log {folder} cannot be read: {error.strerror or error}")


def _listed(folder: Path) -> list[Segment]:
    """
    The current segments of one sidecar.

    A listing that runs while compaction renames one file and removes others may have neither; batches then
    seem to be missing, and a second listing shows whether they are.
    """
    listed = segments_of(folder)
    for _ in range(LISTINGS_MAX):
        if all(former.last + 1 == latter.first for former, latter in pairwise(rows_segments(listed))):
            break
        again = segments_of(folder)
        if again == listed:
            break
        listed = again
    return listed


def _retried(read: Callable[[], Result]) -> Result:
    """
    Return what *read* returns; call it again if a file was removed while it ran.

    Raises:
        DecisionLogError: the files cannot be read, or were removed each time.
    """
    import duckdb

    for attempt in range(1, LISTINGS_MAX + 1):
        try:
            return read()
        # DuckDB takes a file that was replaced under its name for a damaged one.
        except (duckdb.IOException, duckdb.InvalidInputException, FilesChangedError) as error:
            problem = str(error).partition("\n")[0]
            if attempt == LISTINGS_MAX:
                raise DecisionLogError(f"files of the decision log cannot be read: {problem}") from None
        except duckdb.Error as error:
            raise DecisionLogError(
                f"the decision log cannot be read: {str(error).partition(chr(10))[0]}"
            ) from None
    raise AssertionError("not reached")

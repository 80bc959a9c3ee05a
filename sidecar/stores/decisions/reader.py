"""
Reads the decision log of a fleet: the files of every sidecar that writes to one folder.

A query opens only the files whose names say that they may hold rows of the asked span. It runs in the thread
that calls it, on one thread of DuckDB with bounded memory, and is interrupted at its deadline. While it runs,
compaction and retention may remove a file; then the query lists the files again and starts over.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sidecar.domain.decision_rows import COLUMNS, DecisionRow
from sidecar.stores.decisions.filters import LATEST_US, Condition, DecisionFilters, Value, joined, timestamp
from sidecar.stores.decisions.log_folder import host_of
from sidecar.stores.decisions.missing import MissingSpan, read_missing
from sidecar.stores.decisions.rollup import counted_segments, create_rollups
from sidecar.stores.decisions.segments import Contents, Segment, segments_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_MIB_MAX = 256
"""Memory of one query; one that needs more fails instead of the process."""
LISTINGS_MAX = 5
"""How often a query starts over because a file was removed meanwhile."""
INTERRUPT_INTERVAL_S = 0.02
"""How often a query is interrupted after its deadline, until it ends."""
_WALK_SHARE = 0.7
"""The share of a page's deadline for finding its rows; the rest is for reading them."""

Result = TypeVar("Result")
_CURSOR = re.compile(r"(\d{1,18})-([0-9A-Za-z._-]{0,128})")


class DecisionLogError(Exception):
    """The decision log cannot be read; the message says why."""


class DecisionLogTimeoutError(DecisionLogError):
    """A query did not end before its deadline."""


class Cursor(NamedTuple):
    """A place in the log, newest first: pages continue with the rows that are older, by time and id."""

    time_us: int
    decision_id: str = ""

    def __str__(self) -> str:
        """The cursor as API and command line pass it."""
        return f"{self.time_us}-{self.decision_id}"


class LoggedDecision(NamedTuple):
    """A row of the log, and the sidecar that wrote it."""

    sidecar: str
    row: DecisionRow


class DecisionPage(NamedTuple):
    """
    A page of the log, newest first.

    `next_after` None = the log has no older row. A page with fewer rows than asked for still has a
    `next_after` if the deadline came before the whole log was searched.
    """

    decisions: list[LoggedDecision]
    next_after: Cursor | None


class _File(NamedTuple):
    segment: Segment
    path: Path


def parse_cursor(text: str) -> Cursor:
    """
    Return the cursor that *text* is.

    >>> parse_cursor(str(Cursor(1_764_000_000_000_000, "0f3k")))
    Cursor(time_us=1764000000000000, decision_id='0f3k')

    Raises:
        ValueError: *text* is not a cursor.
    """
    match = _CURSOR.fullmatch(text)
    if match is None or int(match[1]) > LATEST_US:
        raise ValueError("invalid cursor; send 'next_after' of an earlier page")
    return Cursor(int(match[1]), match[2])


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
        self, filters: DecisionFilters, limit: int, deadline_s: float, after: Cursor | None = None
    ) -> DecisionPage:
        """
        Return the *limit* newest rows that *filters* admit and that are older than *after*.

        Raises:
            DecisionLogTimeoutError: within *deadline_s* not even the newest files were searched.
            DecisionLogError: the log cannot be read.
        """
        ends_at = monotonic() + deadline_s
        to_us = min(filters.to_us, after.time_us + 1) if after else filters.to_us
        conditions = filters.conditions()
        if after:
            conditions += [
                Condition("time <= ?", (timestamp(after.time_us),)),
                Condition("time < ? OR decision_id < ?", (timestamp(after.time_us), after.decision_id)),
            ]

        def read() -> DecisionPage:
            files = self._files(filters.from_us, to_us)
            # An id occurs once, so a second row is not looked for.
            count = limit + 1 if filters.decision_id is None else 1
            with self._connected() as connection:
                walk = _Walk(connection, files, conditions, count, self._stopped)
                is_whole = walk.search(ends_at - (1 - _WALK_SHARE) * deadline_s)
                return walk.page(is_whole, ends_at)

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
                _view(connection, files)
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
    ) -> list[_File]:
        """The files that *choose* returns and that may have rows of the span, the newest first."""
        found = []
        for folder in self.folders():
            try:
                segments = _listed(folder)
            except FileNotFoundError:  # the sub-folder was removed meanwhile
                continue
            except OSError as error:
                raise _unreadable(folder, error) from None
            found += [
                _File(segment, folder / segment.name)
                for segment in choose(segments)
                if segment.overlaps(from_us, to_us - 1)
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


@contextmanager
def query_deadline(
    connection: DuckDBPyConnection, ends_at: float, stopped: threading.Event | None = None
) -> Iterator[None]:
    """
    Interrupt the queries of *connection* from *ends_at* on, by `monotonic`, or once *stopped* is set.

    Raises:
        DecisionLogTimeoutError: a query was interrupted.
    """
    import duckdb

    is_done = threading.Event()

    def interrupt() -> None:
        # DuckDB forgets an interrupt that it receives between two statements, therefore it is repeated.
        while not is_done.wait(INTERRUPT_INTERVAL_S):
            if monotonic() >= ends_at or (stopped is not None and stopped.is_set()):
                connection.interrupt()

    watch = threading.Thread(target=interrupt, name="decision-log-deadline", daemon=True)
    watch.start()
    try:
        yield
    except duckdb.InterruptException:
        raise DecisionLogTimeoutError("the query did not end in time; ask for a shorter span") from None
    finally:
        is_done.set()
        watch.join()


class _Walk:
    """Finds the newest rows: searches the newest files first, until older files cannot have any of them."""

    def __init__(
        self,
        connection: DuckDBPyConnection,
        files: Sequence[_File],
        conditions: list[Condition],
        count: int,
        stopped: threading.Event,
    ) -> None:
        """Look for the *count* newest rows of *files*, which are given newest first."""
        self._connection = connection
        self._files = files
        self._conditions = conditions
        self._count = count
        self._stopped = stopped
        self._times: list[datetime] = []
        self._searched = 0

    def search(self, ends_at: float) -> bool:
        """Find the times of the rows; False = the deadline came before all files were searched."""
        size = 1
        while self._searched < len(self._files) and not self._has_newest():
            files = self._files[self._searched : self._searched + size]
            try:
                with query_deadline(self._connection, ends_at, self._stopped):
                    found = self._times_in(files)
            except DecisionLogTimeoutError:
                if self._searched == 0:
                    raise
                # A file that was not searched may have rows that are newer than the oldest ones found.
                self._times = [time for time in self._times if time > self._border()]
                return False
            self._times = sorted([*self._times, *found], reverse=True)[: self._count]
            self._searched += len(files)
            size *= 2
        return True

    def page(self, is_whole: bool, ends_at: float) -> DecisionPage:
        """Read the rows that `search` found; the last of several only says that there are older ones."""
        with query_deadline(self._connection, ends_at, self._stopped):
            decisions = self._decisions() if self._times else []
        if len(decisions) == self._count > 1:
            row = decisions[-2].row
            return DecisionPage(decisions[:-1], Cursor(int(row[0]), str(row[1])))
        if is_whole:
            return DecisionPage(decisions, None)
        return DecisionPage(decisions, Cursor(self._files[self._searched].segment.to_us + 1))

    def _has_newest(self) -> bool:
        return len(self._times) == self._count and self._times[-1] > self._border()

    def _border(self) -> datetime:
        """The time of the newest row in the files that were not searched yet."""
        return timestamp(self._files[self._searched].segment.to_us)

    def _times_in(self, files: Sequence[_File]) -> list[datetime]:
        """The times of rows; their other columns are read for the rows of the page only."""
        is_full = len(self._times) == self._count
        newer = [Condition("time >= ?", (self._times[-1],))] if is_full else []
        where = joined([*self._conditions, *newer])
        _view(self._connection, files)
        sql = f"SELECT time FROM decisions WHERE {where.sql} ORDER BY time DESC LIMIT ?"  # noqa: S608
        found = self._connection.execute(sql, (*where.values, self._count)).fetchall()
        return [time for (time,) in found]

    def _decisions(self) -> list[LoggedDecision]:
        oldest = self._times[-1]
        where = joined([*self._conditions, Condition("time >= ?", (oldest,))])
        searched = self._files[: self._searched]
        _view(self._connection, [file for file in searched if timestamp(file.segment.to_us) >= oldest])
        sql = (
            f"SELECT sidecar, {_SELECTED} FROM decisions WHERE {where.sql}"  # noqa: S608
            " ORDER BY time DESC, decision_id DESC LIMIT ?"
        )
        rows = self._connection.execute(sql, (*where.values, self._count)).fetchall()
        return [LoggedDecision(row[0], row[1:]) for row in rows]


_SELECTED = ", ".join(
    f"epoch_us({column.name}) AS {column.name}" if column.is_time else column.name for column in COLUMNS
)


def _view(connection: DuckDBPyConnection, files: Sequence[_File]) -> None:
    """Create the relation `decisions` of *files*."""
    if not files:
        nothing = ", ".join(f"NULL::{column.sql_type} AS {column.name}" for column in COLUMNS)
        connection.execute(f"CREATE OR REPLACE VIEW decisions AS SELECT {nothing}, '' AS sidecar WHERE false")
        return
    rows = connection.read_parquet([str(file.path) for file in files], union_by_name=True)
    rows.select("*, split_part(filename, '/', -2) AS sidecar").create_view("decisions", replace=True)


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
        except duckdb.IOException as error:
            problem = str(error).partition("\n")[0]
            if attempt == LISTINGS_MAX:
                raise DecisionLogError(f"files of the decision log cannot be read: {problem}") from None
        except duckdb.Error as error:
            raise DecisionLogError(
                f"the decision log cannot be read: {str(error).partition(chr(10))[0]}"
            ) from None
    raise AssertionError("not reached")

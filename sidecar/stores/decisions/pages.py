"""
Finds the newest rows of the decision log that fulfill conditions: a page, newest first.

Three steps, because a row has many columns and most files have few rows of a page. First the newest files are
asked for the times and places of rows, until older files cannot have any of the newest rows. Then the order
of rows that have the time of the page's last row is settled. At last only the parts of files that hold the
page's rows are read.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sidecar.domain.decision_rows import COLUMNS, DecisionRow
from sidecar.stores.decisions.filters import LATEST_US, Condition, joined, timestamp
from sidecar.stores.decisions.id_index import may_have
from sidecar.stores.decisions.parquet import quoted
from sidecar.stores.decisions.queries import (
    NO_ROWS,
    DecisionLogTimeoutError,
    FilesChangedError,
    LogFile,
    create_view,
    query_deadline,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

STEP_FILES_MAX = 4
"""Files that are searched at once: at the deadline the work of one such step is lost."""
_CURSOR = re.compile(r"(\d{1,18})-([0-9A-Za-z._-]{0,128})")


class Cursor(NamedTuple):
    """A place in the log, newest first: pages continue with the rows that are older, by time and id."""

    time_us: int
    decision_id: str = ""

    def __str__(self) -> str:
        """The cursor as API and command line pass it."""
        return f"{self.time_us}-{self.decision_id}"

    def conditions(self) -> list[Condition]:
        """Return what rows after this place fulfill."""
        time = timestamp(self.time_us)
        return [
            Condition("time <= ?", (time,)),
            Condition("time < ? OR decision_id < ?", (time, self.decision_id)),
        ]


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


class LoggedDecision(NamedTuple):
    """A row of the log, and the sidecar that wrote it."""

    sidecar: str
    row: DecisionRow


class FoundRows(NamedTuple):
    """
    The rows of a page, newest first.

    `next_after` None = the log has no older row. A page with fewer rows than asked for still has a
    `next_after` if the deadline came before the whole log was searched.
    """

    decisions: list[LoggedDecision]
    next_after: Cursor | None


class _Place(NamedTuple):
    """Where a row is: the path of its file, and its number in the file."""

    time: datetime
    path: str
    number: int


class NewestRows:
    """One search for the newest rows."""

    def __init__(
        self,
        connection: DuckDBPyConnection,
        files: Sequence[LogFile],
        conditions: list[Condition],
        count: int,
        stopped: threading.Event,
        indexed: str = "",
    ) -> None:
        """
        Look for the *count* newest rows of *files*, which are given newest first.

        *indexed* is a value that each row has in a column of `id_index.COLUMNS`, '' = unknown.
        """
        self._connection = connection
        self._files = files
        self._conditions = conditions
        self._count = count
        self._stopped = stopped
        self._indexed = indexed
        self._places: list[_Place] = []
        self._searched = 0

    def search(self, ends_at: float) -> bool:
        """
        Find the places of the rows; False = the deadline *ends_at* came before all files were searched.

        Raises:
            DecisionLogTimeoutError: not even the newest files were searched.
        """
        size = 1
        while self._searched < len(self._files) and not self._has_newest():
            files = self._files[self._searched : self._searched + size]
            try:
                with query_deadline(self._connection, ends_at, self._stopped):
                    found = self._places_in(files)
            except DecisionLogTimeoutError:
                if self._searched == 0:
                    raise
                # A file that was not searched may have rows that are newer than the oldest ones found.
                self._places = [place for place in self._places if place.time > self._border()]
                return False
            self._places = sorted([*self._places, *found], key=attrgetter("time"), reverse=True)
            del self._places[self._count :]
            self._searched += len(files)
            size = min(2 * size, STEP_FILES_MAX)
        return True

    def page(self, is_whole: bool, ends_at: float) -> FoundRows:
        """
        Read the rows that `search` found; the last of several only says that there are older ones.

        Raises:
            DecisionLogTimeoutError: the deadline *ends_at* came first.
            FilesChangedError: a merge or an erasure has moved a row meanwhile.
        """
        with query_deadline(self._connection, ends_at, self._stopped):
            if len(self._places) == self._count > 1:
                self._settle_ties()
            decisions = self._decisions()
        if len(decisions) == self._count > 1:
            row = decisions[-2].row
            return FoundRows(decisions[:-1], Cursor(int(row[0]), str(row[1])))
        if is_whole:
            return FoundRows(decisions, None)
        return FoundRows(decisions, Cursor(self._files[self._searched].segment.to_us + 1))

    def _has_newest(self) -> bool:
        return len(self._places) == self._count and self._places[-1].time > self._border()

    def _border(self) -> datetime:
        """The time of the newest row in the files that were not searched yet."""
        return timestamp(self._files[self._searched].segment.to_us)

    def _places_in(self, files: Sequence[LogFile]) -> list[_Place]:
        is_full = len(self._places) == self._count
        newer = [Condition("time >= ?", (self._places[-1].time,))] if is_full else []
        return self._select(may_have(self._connection, files, self._indexed), newer, "time DESC")

    def _settle_ties(self) -> None:
        """Of several rows with the time of the last one, choose those that are first by their ids."""
        time = self._places[-1].time
        files = [
            file
            for file in self._files[: self._searched]
            if timestamp(file.segment.from_us) <= time <= timestamp(file.segment.to_us)
        ]
        ties = self._select(files, [Condition("time = ?", (time,))], "decision_id DESC")
        newer = [place for place in self._places if place.time > time]
        self._places = [*newer, *ties][: self._count]

    def _select(self, files: Sequence[LogFile], more: list[Condition], order: str) -> list[_Place]:
        """The first places in *files*, by *order*, of rows that also fulfill *more*."""
        if not files:
            return []
        where = joined([*self._conditions, *more])
        create_view(self._connection, files, "filename, file_row_number")
        sql = (
            f"SELECT time, filename, file_row_number FROM decisions WHERE {where.sql}"  # noqa: S608
            f" ORDER BY {order} LIMIT ?"
        )
        found = self._connection.execute(sql, (*where.values, self._count)).fetchall()
        return [_Place(*place) for place in found]

    def _decisions(self) -> list[LoggedDecision]:
        """The rows at the places that were found."""
        numbers: dict[str, list[int]] = {}
        for place in self._places:
            numbers.setdefault(place.path, []).append(place.number)
        # Only the row groups with these numbers are read; of a list of files all would be.
        parts = " UNION ALL BY NAME ".join(
            f"SELECT *, filename, file_row_number FROM read_parquet({quoted(Path(path))})"  # noqa: S608
            f" WHERE file_row_number IN ({', '.join(map(str, of_file))})"
            for path, of_file in numbers.items()
        )
        if not parts:
            return []
        sql = (
            f"SELECT decisions.time, filename, file_row_number, {_SELECTED}"  # noqa: S608
            f" FROM ({NO_ROWS} UNION ALL BY NAME {parts}) AS decisions"
            " ORDER BY decisions.time DESC, decision_id DESC"
        )
        rows = self._connection.execute(sql).fetchall()
        if {_Place(*row[:3]) for row in rows} != set(self._places):
            raise FilesChangedError
        return [LoggedDecision(Path(row[1]).parent.name, row[3:]) for row in rows]


_SELECTED = ", ".join(
    f"epoch_us(decisions.{column.name}) AS {column.name}" if column.is_time else column.name
    for column in COLUMNS
)

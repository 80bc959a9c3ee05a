"""
Writes rows of the decision log as Parquet files, complete or absent.

A row goes through CSV into DuckDB, which sorts and compresses: 25 times as fast as DuckDB's `executemany`. A
file gets a temporary name until it is on the disk, and its real name by a rename (see `segments`).
DuckDB is imported here on first use, because deciding processes never need it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sidecar.domain.decision_rows import COLUMN_NAMES, COLUMNS, DecisionRow
from sidecar.stores.decisions.segments import FILE_MODE, Contents, Segment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "64MB"
"""Memory of a writing connection; a sort that needs more uses temporary files in the log's folder."""

ROW_GROUP_ROWS = 65_536
"""Rows whose minima and maxima a reader checks before it reads them."""

TEMPORARY_PREFIX = ".writing-"
"""The names of files that are not complete, and of DuckDB's temporary folder, begin with this."""

_PLAIN_LINE = ",".join(["%s"] * len(COLUMNS)) + "\n"
_TIME = COLUMN_NAMES.index("time")
_INTEGRATION = COLUMN_NAMES.index("integration")
_TEXTS = [column.name for column in COLUMNS if column.sql_type == "VARCHAR"]

SORTED_BY = "integration, time"
"""The order of rows in a file: readers skip row groups of other integrations and times."""


def connect(folder: Path) -> DuckDBPyConnection:
    """
    Return a connection to a database in memory for writing files of *folder*, with one thread.

    It installs and loads no extension, so it never opens a network connection.
    """
    import duckdb

    return duckdb.connect(
        config={
            "threads": 1,
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(folder / f"{TEMPORARY_PREFIX}sort"),
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )


def write_rows(
    folder: Path, number: int, rows: Iterable[DecisionRow], connection: DuckDBPyConnection | None = None
) -> Segment:
    """
    Write *rows* to *folder* as the file of batch *number*, sorted by `SORTED_BY`; return its name.

    Characters that are not printable are written as U+FFFD: readers print the rows to terminals.

    Args:
        folder: the sidecar's folder, which exists.
        number: 1 ... 9_999_999_999; no other file of the folder has this batch.
        rows: at least one row, in any order.
        connection: from `connect`; None = one for this call.

    Raises:
        ValueError: *rows* is empty.
        OSError: the rows cannot be written, for instance because the disk is full; no file is left.
    """
    with memory_file() as file:
        span: list[int] = []
        with os.fdopen(os.dup(file), "w", encoding="utf-8", errors="replace", newline="") as stream:
            _writer(stream).writerows(_printable(rows, span))
        if not span:
            raise ValueError("no rows; a file of the decision log has at least one row")
        segment = Segment(Contents.ROWS, number, number, *span)
        write_csv(folder, segment, file, connection)
    return segment


def csv_of(rows: Sequence[DecisionRow]) -> bytes:
    """Return *rows* as lines for `write_csv`, without unprintable characters."""
    # Rows without special characters need no csv module: a third of its time, looking at the text included.
    text = _PLAIN_LINE * len(rows) % tuple(chain.from_iterable(rows))
    if _is_plain(text, len(rows)):
        return text.encode()
    stream = io.StringIO()
    _writer(stream).writerows(_printable(rows, []))
    return stream.getvalue().encode("utf-8", "replace")


def _is_plain(text: str, lines: int) -> bool:
    """Whether *text* is *lines* of printable values, none of which needs quotes."""
    return (
        '"' not in text
        and text.count("\n") == lines
        and text.count(",") == lines * (len(COLUMNS) - 1)
        and text.replace("\n", "").isprintable()
    )


@contextlib.contextmanager
def memory_file() -> Iterator[int]:
    """Provide a file in memory: rows on the way to DuckDB need no room on a disk that may be full."""
    fd = os.memfd_create("sidecar-decision-rows", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def write_csv(
    folder: Path, segment: Segment, csv_fd: int, connection: DuckDBPyConnection | None = None
) -> None:
    """
    Write the lines of the file *csv_fd*, from `csv_of`, as the file *segment* of *folder*.

    Raises:
        OSError: the file cannot be written; no file is left.
    """
    write_query(folder, segment, _select(Path(f"/proc/self/fd/{csv_fd}")), connection)


def write_query(
    folder: Path,
    segment: Segment,
    query: str,
    connection: DuckDBPyConnection | None = None,
    values: Sequence[object] = (),
    options: str = "COMPRESSION zstd",
) -> None:
    """
    Write the rows of the SQL *query* as the file *segment* of *folder*; see `write_rows`.

    *values* are the query's parameters, *options* are those of DuckDB's COPY.

    Raises:
        OSError: the file cannot be written; no file is left.
    """
    import duckdb

    temporary = folder / f"{TEMPORARY_PREFIX}{segment.name}"
    opened = connection or connect(folder)
    try:
        opened.execute(
            f"COPY ({query}) TO {quoted(temporary)}"
            f" (FORMAT parquet, {options}, ROW_GROUP_SIZE {ROW_GROUP_ROWS})",
            values,
        )
        temporary.chmod(FILE_MODE)  # DuckDB's files have the umask's mode
        _sync(temporary)
        temporary.rename(folder / segment.name)
    except duckdb.Error as error:
        raise OSError(f"{folder / segment.name}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        if connection is None:
            opened.close()
    _sync(folder)


def quoted(path: Path | str) -> str:
    """Return *path*, or another text, as a string in SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def _select(source: Path) -> str:
    """The query that reads the rows of the CSV file *source*, with the types of `COLUMNS`, sorted."""
    types = ", ".join(
        f"'{column.name}': '{'BIGINT' if column.is_time else column.sql_type}'" for column in COLUMNS
    )
    columns = ", ".join(
        f'make_timestamp("{column.name}") AS "{column.name}"' if column.is_time else f'"{column.name}"'
        for column in COLUMNS
    )
    return (
        f"SELECT {columns} FROM read_csv({quoted(source)}, columns = {{{types}}}, header = false,"  # noqa: S608
        f" auto_detect = false, delim = ',', quote = '\"', escape = '\"', new_line = '\\n',"
        f" force_not_null = {_TEXTS}, parallel = false) ORDER BY {SORTED_BY}"
    )


def _writer(stream: TextIO) -> Any:
    return csv.writer(stream, lineterminator="\n")


def _printable(rows: Iterable[DecisionRow], span: list[int]) -> Iterator[list[str | int]]:
    """Yield *rows* without unprintable characters; *span* receives the least and the greatest time."""
    from_us, to_us = sys.maxsize, 0
    for row in rows:
        time_us = row[_TIME]
        assert type(time_us) is int
        from_us, to_us = min(from_us, time_us), max(to_us, time_us)
        span[:] = from_us, to_us
        yield [
            value if type(value) is not str or value.isprintable() else _replace_unprintable(value)
            for value in row
        ]


def _replace_unprintable(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _sync(path: Path) -> None:
    """Wait until *path*, a file or a folder, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""
Writes rows of the decision log as Parquet files, complete or absent.

DuckDB reads lines and numbers as workers send them (see `lines`): 25 times as fast as its `executemany`. A
file gets a temporary name until it is on the disk, and its real name by a rename (see `segments`).
DuckDB is imported here on first use, because deciding processes never need it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.domain.decision_rows import COLUMNS, SEPARATOR
from sidecar.stores.decisions.arrow import NumberTable
from sidecar.stores.decisions.lines import LATENCY_US_MAX, LINE_COLUMNS, NUMBERS, Lines
from sidecar.stores.decisions.segments import FILE_MODE, Segment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "64MB"
"""Memory of a writing connection; a sort that needs more uses temporary files in the log's folder."""

ROW_GROUP_ROWS = 65_536
"""Rows whose minima and maxima a reader checks before it reads them."""

_NUMBERS_VIEW = "decision_numbers"
TEMPORARY_PREFIX = ".writing-"
"""The names of files that are not complete, and of DuckDB's temporary folder, begin with this."""

_CALCULATED = {
    "time": "make_timestamp(time // 1000)",
    "path": "split_part(path, '?', 1)",
    "reset_at": "make_timestamp(reset_at)",
    "store_time": "make_timestamp(store_time)",
    "latency_us": f"least(latency_us // 1000, {LATENCY_US_MAX})",
}
"""The columns that differ from what `lines` has, as SQL."""

SORTED_BY = "integration, time"
"""The order of rows in a merged file: readers skip row groups of other integrations and times."""


def connect(folder: Path, memory_limit: str = MEMORY_LIMIT) -> DuckDBPyConnection:
    """
    Return a connection to a database in memory for writing files of *folder*, with one thread.

    It installs and loads no extension, so it never opens a network connection.
    """
    import duckdb

    return duckdb.connect(
        config={
            "threads": 1,
            "memory_limit": memory_limit,
            "temp_directory": str(folder / f"{TEMPORARY_PREFIX}sort"),
            "preserve_insertion_order": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )


def write_lines(
    folder: Path, segment: Segment, lines: Sequence[Lines], connection: DuckDBPyConnection | None = None
) -> None:
    """
    Write *lines*, at least one row, as the file *segment* of *folder*, in their order.

    Args:
        folder: the sidecar's folder, which exists.
        connection: from `connect`; None = one for this call.

    Raises:
        OSError: the rows cannot be written, for instance because the disk is full; no file is left.
    """
    opened = connection or connect(folder)
    numbers = NumberTable(b"".join(part.numbers for part in lines), len(NUMBERS))
    # A file in memory needs no room on a disk that may be full.
    fd = os.memfd_create("sidecar-decision-rows", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(part.text for part in lines)
        opened.register(_NUMBERS_VIEW, numbers)
        rows = sum(part.rows for part in lines)
        write_query(folder, segment, _select(f"/proc/self/fd/{fd}"), opened, rows=rows)
    finally:
        os.close(fd)
        opened.unregister(_NUMBERS_VIEW)
        numbers.close()
        if connection is None:
            opened.close()


def write_query(
    folder: Path,
    segment: Segment,
    query: str,
    connection: DuckDBPyConnection | None = None,
    values: Sequence[object] = (),
    options: str = "COMPRESSION zstd",
    rows: int | None = None,
) -> None:
    """
    Write the rows of the SQL *query* as the file *segment* of *folder*; see `write_lines`.

    *values* are the query's parameters, *options* are those of DuckDB's COPY. *rows* is the number of rows
    that the query must have, None = any.

    Raises:
        OSError: the file cannot be written; no file is left.
    """
    import duckdb

    temporary = folder / f"{TEMPORARY_PREFIX}{segment.name}"
    opened = connection or connect(folder)
    try:
        ((written,),) = opened.execute(
            f"COPY ({query}) TO {quoted(temporary)}"
            f" (FORMAT parquet, {options}, ROW_GROUP_SIZE {ROW_GROUP_ROWS})",
            values,
        ).fetchall()
        if rows not in (None, written):
            raise OSError(f"{folder / segment.name}: {written} rows, not {rows}; this is a bug, report it")
        temporary.chmod(FILE_MODE)  # DuckDB's files have the umask's mode
        _sync(temporary)
        temporary.rename(folder / segment.name)
    except duckdb.Error as error:
        raise OSError(f"{folder / segment.name}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
        if connection is None:
            opened.close()
    _sync(folder)


def _reason(error: Exception) -> str:
    """The system's reason of a failed write, which DuckDB quotes in JSON, or else the text of *error*."""
    number = re.search(r'"errno":"(\d+)"', str(error))
    return os.strerror(int(number[1])) if number else str(error)


def quoted(path: Path | str) -> str:
    """Return *path*, or another text, as a string in SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def _select(text_path: str) -> str:
    """The query that reads the lines in the file *text_path* beside their numbers, as `COLUMNS`."""
    types = {"nothing": "VARCHAR", **dict.fromkeys(LINE_COLUMNS, "VARCHAR"), "generation": "BIGINT"}
    numbers = ", ".join(f"n[{place}] AS {name}" for place, name in enumerate(NUMBERS, 1))
    columns = ", ".join(
        f"({_CALCULATED.get(column.name, column.name)})::{column.sql_type} AS {column.name}"
        for column in COLUMNS
    )
    texts = [name for name, sql_type in types.items() if sql_type == "VARCHAR"]
    return (
        f"SELECT {columns} FROM (SELECT *, {numbers} FROM read_csv('{text_path}', columns = {types},"  # noqa: S608
        f" header = false, auto_detect = false, delim = '{SEPARATOR}', quote = '', escape = '',"
        f" new_line = '\\n', force_not_null = {texts}, parallel = false)"
        f" POSITIONAL JOIN {_NUMBERS_VIEW})"
    )


def _sync(path: Path) -> None:
    """Wait until *path*, a file or a folder, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

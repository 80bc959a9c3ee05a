"""Exports rows of the decision log as a file: NDJSON, CSV or Parquet, oldest first."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from sidecar.domain.decision_rows import COLUMNS, Column
from sidecar.stores.decisions.filters import DecisionFilters, joined
from sidecar.stores.decisions.parquet import quoted
from sidecar.stores.decisions.queries import DecisionLogError
from sidecar.stores.decisions.reader import DecisionReader

EXPORT_ROWS_MAX = 1_000_000
"""Rows of one export."""
EXPORT_TEXT_BYTES_MAX = 1 << 30
"""Bytes of the texts in one export that clients choose: paths, methods and request ids."""
SPILL_BYTES_MAX = 4 << 30
"""Bytes of the temporary files that sort an export."""


class ExportFormat(StrEnum):
    """The format of an export."""

    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


class TooManyRowsError(DecisionLogError):
    """More rows match than an export may have."""


def count_rows(reader: DecisionReader, filters: DecisionFilters, deadline_s: float) -> int:
    """
    Return the number of rows that *filters* admit.

    Raises:
        TooManyRowsError: more than an export may have.
        DecisionLogError: the log cannot be read in time.
    """
    where = joined(filters.conditions())
    sql = (
        "SELECT count(*), coalesce(sum(strlen(path) + strlen(method) + strlen(request_id)), 0)"  # noqa: S608
        f" FROM decisions WHERE {where.sql}"
    )
    ((rows, text_bytes),) = reader.sql(sql, where.values, deadline_s, filters.from_us, filters.to_us)
    if rows > EXPORT_ROWS_MAX or text_bytes > EXPORT_TEXT_BYTES_MAX:
        raise TooManyRowsError(
            f"{rows} rows match; an export has at most {EXPORT_ROWS_MAX} rows and"
            f" {EXPORT_TEXT_BYTES_MAX >> 30} GiB of paths, methods and request ids"
        )
    return int(rows)


def export_rows(
    reader: DecisionReader, filters: DecisionFilters, format: ExportFormat, path: Path, deadline_s: float
) -> None:
    """
    Write the rows that *filters* admit to the new file *path*, whose folder also gets the temporary files.

    Parquet has the types of the log's own files. In NDJSON and CSV times are RFC 3339 in UTC. In CSV a text
    that a spreadsheet would run as a formula gets an apostrophe in front.

    Raises:
        DecisionLogError: the log cannot be read, or the file cannot be written, in time.
    """
    where = joined(filters.conditions())
    columns = ", ".join(f"{_written(column, format)} AS {column.name}" for column in COLUMNS)
    sql = (
        f"COPY (SELECT sidecar, {columns} FROM decisions WHERE {where.sql}"  # noqa: S608
        f" ORDER BY decisions.time, decisions.decision_id LIMIT {EXPORT_ROWS_MAX})"
        f" TO {quoted(path)} ({_FORMS[format]})"
    )
    spill = (path.parent, SPILL_BYTES_MAX)
    reader.sql(sql, where.values, deadline_s, filters.from_us, filters.to_us, spill)


_FORMS = {
    ExportFormat.NDJSON: "FORMAT json",
    ExportFormat.CSV: "FORMAT csv, HEADER true",
    ExportFormat.PARQUET: "FORMAT parquet, COMPRESSION zstd",
}


def _written(column: Column, format: ExportFormat) -> str:
    """SQL for *column* as *format* writes it."""
    name = f"decisions.{column.name}"
    if format is ExportFormat.PARQUET:
        return name
    if column.is_time:
        text = f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%fZ')"
        return f"CASE WHEN epoch_us({name}) = 0 THEN NULL ELSE {text} END"
    if column.sql_type == "VARCHAR" and format is ExportFormat.CSV:
        return f"CASE WHEN regexp_matches({name}, '^[-=+@]') THEN '''' || {name} ELSE {name} END"
    return name

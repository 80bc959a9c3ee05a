"""
An index of the ids in a file of the decision log: which large files need not be read to find an id.

The index of `rows-X.parquet` is `ids-X.parquet`: the hashes of the decision ids, request ids and client
addresses in the file, 32 bits each, sorted. A look-up reads one row group of it. A hash may belong to another
value, so a file may be read in vain; one that is not read cannot have the value. Without an index a file is
read.

Each index also has the hash of the empty text. DuckDB may change its hash function; an index without that
hash was written with another function and is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.stores.decisions.parquet import quoted, write_query
from sidecar.stores.decisions.queries import LogFile
from sidecar.stores.decisions.segments import Contents, Segment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COLUMNS = ("decision_id", "request_id", "client_address")
"""Columns with so many values that a filter by one of them reads the whole column of every file."""
_COPY_OPTIONS = "COMPRESSION zstd, PARQUET_VERSION v2"
"""Sorted numbers take 1.7 bytes in this version of the format, 3.6 otherwise."""


def _hash(value: str) -> str:
    """SQL for the hash of the SQL expression *value*."""
    return f"(hash({value}) >> 32)::UINTEGER"


def write_index(folder: Path, rows: Segment, source: str, connection: DuckDBPyConnection) -> None:
    """
    Write the index of the file *rows* of *folder*, whose rows are the relation *source*.

    Raises:
        OSError: the file cannot be written; no file is left.
    """
    hashes = " UNION ALL ".join(
        f"SELECT DISTINCT {_hash(column)} AS hash FROM {source}"  # noqa: S608
        if column == "client_address"  # it occurs many times; an id occurs once
        else f"SELECT {_hash(column)} AS hash FROM {source} WHERE {column} <> ''"  # noqa: S608
        for column in COLUMNS
    )
    marked = f"{hashes} UNION ALL SELECT {_hash(quoted(''))}"
    query = f"SELECT hash FROM ({marked}) ORDER BY hash"  # noqa: S608
    write_query(folder, rows._replace(contents=Contents.IDS), query, connection, options=_COPY_OPTIONS)


def may_have(connection: DuckDBPyConnection, files: Sequence[LogFile], value: str) -> list[LogFile]:
    """Return those of *files* that may have *value* in a column of `COLUMNS`; all of them if it is ''."""
    indexes = {str(file.ids) for file in files if file.ids is not None}
    if not value or not indexes:
        return list(files)
    mark, wanted = connection.execute(f"SELECT {_hash(quoted(''))}, {_hash('?')}", [value]).fetchall()[0]
    paths = ", ".join(map(quoted, sorted(indexes)))
    found = connection.execute(
        f"SELECT DISTINCT filename, hash FROM read_parquet([{paths}]) WHERE hash IN ({mark}, {wanted})"  # noqa: S608
    ).fetchall()
    usable = {path for path, hash in found if hash == mark}
    having = {path for path, hash in found if hash == wanted}
    return [file for file in files if str(file.ids) in having or str(file.ids) not in usable]

"""
An index of the ids in a file of the decision log: which large files need not be read to find an id.

The index of `rows-X.parquet` is `ids-X.parquet`: the hashes of the decision ids, request ids and client
addresses in the file, 32 bits each, sorted. A look-up reads one row group of it. A hash may belong to another
value, so a file may be read in vain; one that is not read cannot have the value. An address also has the
numbers of its row groups. Without an index a file is read.

Each index also has the hash of the empty text. DuckDB may change its hash function; an index without that
hash was written with another function and is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.stores.decisions.parquet import ROW_GROUP_ROWS, quoted, write_query
from sidecar.stores.decisions.queries import LogFile
from sidecar.stores.decisions.segments import Contents, Segment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ID_COLUMNS = ("decision_id", "request_id")
"""Columns whose values occur once or twice. An address occurs many times, but in few row groups."""
_COPY_OPTIONS = "COMPRESSION zstd, PARQUET_VERSION v2"
"""Sorted numbers take 1.7 bytes in this version of the format, 3.6 otherwise."""


def _hash(value: str) -> str:
    """SQL for the hash of the SQL expression *value*."""
    return f"(hash({value}) >> 32)::UINTEGER"


def write_index(folder: Path, rows: Segment, connection: DuckDBPyConnection) -> None:
    """
    Write the index of the file *rows* of *folder*.

    Raises:
        OSError: the file cannot be written; no file is left.
    """
    source = f"read_parquet({quoted(folder / rows.name)})"
    ids = [
        f"SELECT {_hash(column)} AS hash, NULL::USMALLINT AS row_group FROM {source} WHERE {column} <> ''"  # noqa: S608
        for column in ID_COLUMNS
    ]
    addresses = (
        f"SELECT DISTINCT {_hash('client_address')}, (file_row_number // {ROW_GROUP_ROWS})::USMALLINT"  # noqa: S608
        f" FROM {source} WHERE client_address <> ''"
    )
    mark = f"SELECT {_hash(quoted(''))}, NULL"
    hashes = " UNION ALL ".join([*ids, addresses, mark])
    query = f"SELECT hash, row_group FROM ({hashes}) ORDER BY hash"  # noqa: S608
    write_query(folder, rows._replace(contents=Contents.IDS), query, connection, options=_COPY_OPTIONS)


def may_have(connection: DuckDBPyConnection, files: Sequence[LogFile], value: str) -> list[LogFile]:
    """
    Return those of *files* that may have *value*, an id or an address; all of them if it is ''.

    For an address they have the `row_groups` that may have it.
    """
    paths = sorted({str(file.ids) for file in files if file.ids is not None})
    if not value or not paths:
        return list(files)
    mark, wanted = connection.execute(f"SELECT {_hash(quoted(''))}, {_hash('?')}", [value]).fetchall()[0]
    found = connection.execute(
        "SELECT filename, hash, row_group"  # noqa: S608
        f" FROM read_parquet([{', '.join(map(quoted, paths))}]) WHERE hash IN ({mark}, {wanted})"
    ).fetchall()
    usable = {path for path, hash, _ in found if hash == mark}
    groups: dict[str, set[int | None]] = {}
    for path, hash, group in found:
        if hash == wanted:
            groups.setdefault(path, set()).add(group)
    kept = []
    for file in files:
        of_file = groups.get(str(file.ids), set())
        if str(file.ids) not in usable or None in of_file:
            kept.append(file)
        elif of_file:
            kept.append(file._replace(row_groups=tuple(group for group in of_file if group is not None)))
    return kept

"""
Rollups of the decision log: small exact counts by integration and hour, which outlive the rows.

A rollup is one tall table, see `COLUMNS`. Each row of the log counts once in each kind that it has a key for:

    kind        key
    reason      the reason (ok = allowed)
    would_deny  the reason that shadow mode did not enforce
    scope       the scope that the request needs
    address     the network of the client: /24 for IPv4, /64 for IPv6
    credential  the id of the API key
    route       the method and the path of the route, or of the request if no route matched

The counts of several files add up: SUM of `count`, MIN of `first_seen`, MAX of `last_seen`. A file keeps the
`KEYS_MAX` busiest keys of a kind, integration and hour exactly, and adds up the requests of the rest as the
key `OTHER`. Totals are therefore always exact, and an `OTHER` shows that keys are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sidecar.domain.activity import OTHER
from sidecar.stores.decisions.segments import Contents, Segment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

KEYS_MAX = 500
"""Keys of a kind that a file keeps for each integration and hour: at most 6 x 500 keys."""
KEY_CHARACTERS_MAX = 200
"""Longer keys are cut; only a path can be longer."""

COLUMNS = {
    "kind": "VARCHAR",
    "key": "VARCHAR",
    "integration": "VARCHAR",
    "hour": "TIMESTAMP",
    "reason": "VARCHAR",
    "count": "BIGINT",
    "first_seen": "TIMESTAMP",
    "last_seen": "TIMESTAMP",
}
"""The columns of a rollup, with their types in the Parquet files."""

_COLUMNS = ", ".join(COLUMNS)
_MEASURES = "sum(count)::BIGINT AS count, min(first_seen) AS first_seen, max(last_seen) AS last_seen"


def network_of(address: str) -> str:
    """
    Return an SQL expression for the network of the SQL expression *address*, /24 or /64, in CIDR notation.

    *address* is an IPv4 address or a lower-case IPv6 address, as `domain.cidr.format_address` writes it; the
    network of '' is ''.
    """
    last_groups = f"regexp_extract_all(split_part({address}, '::', 2), '[0-9a-f]+')"
    first_groups = f"regexp_extract_all(split_part({address}, '::', 1), '[0-9a-f]+')"
    groups = f"list_concat(list_resize({first_groups}, 8 - len({last_groups}), '0'), {last_groups})"
    return (
        f"CASE WHEN {address} LIKE '%:%'"
        f" THEN regexp_replace(array_to_string({groups}[1:4], ':'), '(^0)?(:0)*$', '') || '::/64'"
        f" ELSE regexp_replace({address}, '\\.[0-9]+$', '.0/24') END"
    )


KINDS = {
    "reason": "reason",
    "would_deny": "would_deny",
    "scope": "scope",
    "address": "client_address",
    "credential": "credential",
    "route": "trim(method || ' ' || CASE route WHEN '' THEN path ELSE route END)",
}
"""Each kind, with the SQL expression of what it counts; '' = the row has nothing of this kind."""


def rollup_query(source: str) -> str:
    """Return a SELECT of the rollup of the relation *source*, which has the columns of the decision log."""
    counts = " UNION ALL ".join(
        f"SELECT '{kind}' AS kind, left({value}, {KEY_CHARACTERS_MAX}) AS value, integration,"  # noqa: S608
        " date_trunc('hour', time) AS hour, reason, count(*) AS count, min(time) AS first_seen,"
        f" max(time) AS last_seen FROM {source} WHERE {value} <> '' GROUP BY ALL"
        for kind, value in KINDS.items()
    )
    # An address is counted before its network is computed, which takes 10 times as long as to count it.
    keys = f"SELECT *, CASE kind WHEN 'address' THEN {network_of('value')} ELSE value END AS key FROM counts"  # noqa: S608
    return f"WITH counts AS ({counts}), {_bounded(keys)}"


def sum_query(source: str) -> str:
    """Return a SELECT that adds up the relation *source* of rollups, with at most `KEYS_MAX` keys."""
    return f"WITH {_bounded(f'SELECT * FROM {source}')}"  # noqa: S608


def _bounded(keys: str) -> str:
    """Return the end of a query: the counts of *keys*, added up, the busiest keys of each kind and hour."""
    # The reason is no part of a key: a key is kept with all its reasons, or with none.
    totals = "SELECT *, sum(count) OVER (PARTITION BY kind, integration, hour, key) AS total FROM keys"
    ranks = (
        "SELECT *, dense_rank() OVER (PARTITION BY kind, integration, hour ORDER BY total DESC, key) AS rank"
        " FROM totals"
    )
    return (
        f"keys AS ({keys}), totals AS ({totals}), ranks AS ({ranks})"  # noqa: S608
        f" SELECT kind, CASE WHEN rank <= {KEYS_MAX} THEN key ELSE '{OTHER}' END AS key,"
        f" integration, hour, reason, {_MEASURES} FROM ranks GROUP BY ALL"
        " ORDER BY integration, hour, kind, key"
    )


def counted_segments(segments: Iterable[Segment]) -> list[Segment]:
    """
    Return the files of one sidecar that have each of its batches once: rollups, and rows without a rollup.

    Rows must be passed to `rollup_query`. A rollup outlives its rows; a larger file replaces a smaller one.

    >>> rows = [Segment(Contents.ROWS, first, last, 0, 0) for first, last in ((1, 9), (10, 10))]
    >>> [(s.contents.value, s.first) for s in counted_segments([*rows, Segment(Contents.ROLLUP, 1, 9, 0, 0)])]
    [('rollup', 1), ('rows', 10)]
    """
    counted: list[Segment] = []
    with_counts = (segment for segment in segments if segment.contents is not Contents.IDS)
    for segment in sorted(with_counts, key=lambda s: (s.first, -s.last, s.contents is Contents.ROWS)):
        if not counted or segment.last > counted[-1].last:
            counted.append(segment)
    return counted


def create_rollups(
    connection: DuckDBPyConnection,
    rollup_paths: Sequence[str],
    rows_paths: Sequence[str],
    integrations: Sequence[str],
) -> None:
    """Create the relation `rollups` of files with rollups and files with rows, for *integrations*."""
    from duckdb import ColumnExpression, ConstantExpression

    def relation(paths: Sequence[str]) -> DuckDBPyRelation:
        wanted = ColumnExpression("integration").isin(*map(ConstantExpression, integrations))
        return connection.read_parquet(list(paths), union_by_name=True).filter(wanted)

    parts = []
    if rollup_paths:
        relation(rollup_paths).create_view("kept_rollups")
        parts.append(f"SELECT {_COLUMNS} FROM kept_rollups")  # noqa: S608
    if rows_paths:
        relation(rows_paths).create_view("rows_without_rollup")
        parts.append(f"SELECT {_COLUMNS} FROM ({rollup_query('rows_without_rollup')})")  # noqa: S608
    nothing = ", ".join(f"NULL::{sql_type} AS {name}" for name, sql_type in COLUMNS.items())
    query = " UNION ALL ".join(parts) or f"SELECT {nothing} WHERE false"
    connection.execute(f"CREATE VIEW rollups AS {query}")

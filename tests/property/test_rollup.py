"""Rollups of the decision log: however the rows are split into files, the rollups add up to the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain.activity import OTHER
from sidecar.domain.decision_rows import COLUMNS
from sidecar.stores.decisions.rollup import KEYS_MAX, counted_segments, network_of, rollup_query, sum_query
from sidecar.stores.decisions.segments import Contents, Segment

START = datetime(2026, 3, 1, 10)
SCHEMA = ", ".join(f"{column.name} {column.sql_type}" for column in COLUMNS)

Row = dict[str, object]
Counts = dict[tuple[object, ...], tuple[int, object, object]]

addresses = st.one_of(
    st.just(""), st.ip_addresses().map(str), st.sampled_from(["203.0.113.7", "203.0.113.9", "2001:db8::1"])
)
rows = st.fixed_dictionaries(
    {
        "time": st.integers(0, 3 * 3_600 * 10**6 - 1).map(lambda us: START + timedelta(microseconds=us)),
        "integration": st.sampled_from(["", "acme-erp", "globex"]),
        "credential": st.sampled_from(["", "ak_1", "ak_2"]),
        "reason": st.sampled_from(["ok", "scope_missing", "rate_limited"]),
        "would_deny": st.sampled_from(["", "rate_limited"]),
        "method": st.sampled_from(["GET", "POST"]),
        "path": st.sampled_from(["/a", "/b/1"]),
        "route": st.sampled_from(["", "/a"]),
        "scope": st.sampled_from(["", "orders:read", "orders:write"]),
        "client_address": addresses,
    }
)


def network(address: str) -> str:
    """The network of *address*, by the standard library."""
    return str(ip_network((address, 24 if ip_address(address).version == 4 else 64), strict=False))


def keys_of(row: Row) -> dict[str, str]:
    """The key of *row* in each kind, written independently of the query."""
    address = str(row["client_address"])
    return {
        "reason": str(row["reason"]),
        "would_deny": str(row["would_deny"]),
        "scope": str(row["scope"]),
        "address": network(address) if address else "",
        "credential": str(row["credential"]),
        "route": f"{row['method']} {row['route'] or row['path']}",
    }


def aggregate(rows: Sequence[Row]) -> Counts:
    """The rollup of *rows*, in Python."""
    counts: Counts = {}
    for row in rows:
        time = row["time"]
        assert isinstance(time, datetime)
        hour = time.replace(minute=0, second=0, microsecond=0)
        for kind, key in keys_of(row).items():
            if key:
                group = (kind, key, row["integration"], hour, row["reason"])
                count, first, last = counts.get(group, (0, time, time))
                counts[group] = (count + 1, min(first, time), max(last, time))  # type: ignore[type-var]
    return counts


def table_of(connection: duckdb.DuckDBPyConnection, rows: Sequence[Row]) -> None:
    """Make *rows* the table `rows`; columns that a row does not name are NULL."""
    connection.execute(f"CREATE OR REPLACE TABLE rows ({SCHEMA})")
    if rows:
        names = list(rows[0])
        places = ", ".join("?" for _ in names)
        connection.executemany(
            f"INSERT INTO rows ({', '.join(names)}) VALUES ({places})",  # noqa: S608
            [[row[name] for name in names] for row in rows],
        )


@settings(max_examples=20)
@given(st.lists(st.lists(rows, max_size=12), min_size=1, max_size=4))
def test_rollup__files_add_up_to_the_rows(files: list[list[Row]]) -> None:
    """The sum of the rollups of any files equals the aggregate of all their rows."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE rollups (kind VARCHAR, key VARCHAR, integration VARCHAR, hour TIMESTAMP,"
            " reason VARCHAR, count BIGINT, first_seen TIMESTAMP, last_seen TIMESTAMP)"
        )
        for file in files:
            table_of(connection, file)
            connection.execute(f"INSERT INTO rollups {rollup_query('rows')}")
        found = connection.execute(sum_query("rollups")).fetchall()
    assert {tuple(row[:5]): tuple(row[5:]) for row in found} == aggregate([row for f in files for row in f])


@settings(max_examples=20)
@given(st.lists(st.one_of(st.ip_addresses(v=6), st.ip_addresses(v=4)).map(str), min_size=1, max_size=50))
def test_network__as_the_standard_library(addresses: list[str]) -> None:
    """The network of an address is written as `ipaddress` writes it, for every place of the zeros."""
    query = f"SELECT {network_of('a')} FROM (SELECT unnest(?) AS a)"  # noqa: S608
    assert [row[0] for row in duckdb.execute(query, [addresses]).fetchall()] == [*map(network, addresses)]


def test_network__every_place_of_the_zeros() -> None:
    """Each group of an IPv6 address may be zero."""
    texts = [
        str(ip_address(sum(0xA << 16 * i for i in range(8) if mask >> i & 1))) for mask in range(256, 512)
    ]
    six = [str(ip_address(ip_address(t).packed.rjust(16, b"\0"))) for t in texts]
    query = f"SELECT {network_of('a')} FROM (SELECT unnest(?) AS a)"  # noqa: S608
    assert [row[0] for row in duckdb.execute(query, [six]).fetchall()] == [*map(network, six)]


def test_rollup__keeps_the_busiest_keys_and_all_counts() -> None:
    """Past KEYS_MAX keys the rest is added up as other, so that totals stay exact."""
    with duckdb.connect() as connection:
        table_of(connection, [])
        connection.execute(
            "INSERT INTO rows (time, integration, credential, reason, would_deny, method, path, route, scope,"
            " client_address) SELECT TIMESTAMP '2026-03-01 10:00:00', 'acme-erp', '', 'ok', '', 'GET',"
            " '/p' || (n % 700), '', '', '' FROM range(1000) t(n)"
        )
        found = connection.execute(
            f"SELECT key, count FROM ({rollup_query('rows')}) WHERE kind = 'route'"  # noqa: S608
        ).fetchall()
    counts = Counter(dict(found))
    assert len(counts) == KEYS_MAX + 1
    assert counts.total() == 1000
    assert counts[OTHER] == 200
    assert all(counts[f"GET /p{n}"] == 2 for n in range(300))


def test_counted__a_larger_file_replaces_rows_and_rollups_of_its_batches() -> None:
    """Between the rename of a compacted file and that of its rollup, its batches count once."""
    old = [Segment(contents, 1, 60, 0, 0) for contents in Contents]
    compacted = Segment(Contents.ROWS, 1, 120, 0, 0)
    later = Segment(Contents.ROWS, 121, 121, 0, 0)
    assert counted_segments([*old, Segment(Contents.ROWS, 61, 61, 0, 0), compacted, later]) == [
        compacted,
        later,
    ]
    rollup = Segment(Contents.ROLLUP, 1, 120, 0, 0)
    assert counted_segments([*old, compacted, rollup, later]) == [rollup, later]
    assert counted_segments([rollup]) == [rollup]

"""
Measures the filters of a large decision log: `make decision-log-scale`, or ROWS=5000000.

The log has the files that the writer leaves: most rows in large files with an index of their ids, the latest
rows in small ones. `python -m tests.measure.decision_log ROWS DIR` keeps the log in DIR for the next time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from sidecar.domain.cidr import parse_cidr
from sidecar.domain.decision_rows import COLUMNS
from sidecar.stores.decisions.filters import DecisionFilters
from sidecar.stores.decisions.id_index import write_index
from sidecar.stores.decisions.parquet import SORTED_BY, connect, write_query
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.decisions.segments import Contents, Segment
from sidecar.stores.decisions.upkeep import INDEXED_BYTES_MIN

ROWS = 50_000_000
FILE_ROWS = 2_500_000
"""Rows of the largest files; each level below has a twelfth, as after the writer's compactions."""
LEVELS = 3
INTEGRATIONS = 1_000
INTERVAL_US = 10_000
"""100 requests a second: 50 million are six days."""
START_US = 1_764_000_000_000_000
LIMIT = 100
DEADLINE_S = 600.0
SIDECAR = "one"

_INTEGRATION = f"(pow(hash(i) % 1000003 / 1e6, 3) * {INTEGRATIONS})::INT"
"""A few integrations send most requests."""
_COLUMNS = {
    "time": f"make_timestamp({START_US} + i * {INTERVAL_US})",
    # Each of four workers has a process id of its own.
    "decision_id": "format('{}123456789{:012x}', hash(i % 4) % 10, i)",
    "request_id": "uuid()::VARCHAR",
    "trace_id": "''",
    "integration": f"format('integration-{{:04d}}', {_INTEGRATION})",
    "credential": "format('key{:04d}', hash(i) % 1000)",
    "verdict": "CASE WHEN hash(i + 7) % 50 = 0 THEN 'DENY_429' WHEN hash(i + 7) % 100 = 1 THEN 'DENY_403'"
    " ELSE 'ALLOW' END",
    "reason": "CASE WHEN hash(i + 7) % 50 = 0 THEN 'rate_limited' WHEN hash(i + 7) % 100 = 1"
    " THEN 'scope_missing' ELSE 'ok' END",
    "would_deny": "''",
    "method": "CASE WHEN hash(i + 3) % 5 = 0 THEN 'POST' ELSE 'GET' END",
    "path": "format('/v1/orders/{}', hash(i + 5) % 100000)",
    "scope": "CASE WHEN hash(i + 3) % 5 = 0 THEN 'orders:write' ELSE 'orders:read' END",
    # An integration has 250 addresses; a few requests of all integrations come from shared addresses.
    "client_address": "CASE WHEN hash(i + 15) % 50 = 0"
    " THEN format('172.16.{}.{}', hash(i + 9) % 200, hash(i + 11) % 250)"
    f" ELSE format('10.{{}}.{{}}.{{}}', {_INTEGRATION} // 250, {_INTEGRATION} % 250, hash(i + 11) % 250) END",
    "route": "'/v1/orders/{id}'",
    "remaining": "hash(i + 1) % 100",
    "limit_rpm": "600",
    "reset_at": f"make_timestamp({START_US} + i * {INTERVAL_US} + 1000000)",
    "store_time": f"make_timestamp({START_US} + i * {INTERVAL_US})",
    "retry_after_us": "0",
    "fallback": "''",
    "dialect": "'ext_authz'",
    "worker": "i % 4",
    "latency_us": "30 + hash(i + 13) % 40",
    "generation": "7",
}


def file_sizes(rows: int) -> Iterator[int]:
    """Yield the number of rows of each file, the oldest first."""
    size, left = min(FILE_ROWS, rows // 2), rows
    for level in range(LEVELS):
        keep = 0 if level == LEVELS - 1 else size
        while left - size >= keep:
            yield size
            left -= size
        size = max(1, size // 12)
    if left:
        yield left


def write_log(folder: Path, rows: int) -> None:
    """Write *rows* to *folder* as one sidecar."""
    folder.mkdir(parents=True)
    selected = ", ".join(f"({_COLUMNS[name]})::{sql_type} AS {name}" for name, sql_type, _ in COLUMNS)
    first = 0
    with connect(folder) as connection:
        connection.execute("SET memory_limit = '1GB'")
        for number, size in enumerate(file_sizes(rows), 1):
            times = (START_US + first * INTERVAL_US, START_US + (first + size - 1) * INTERVAL_US)
            query = f"SELECT {selected} FROM range({first}, {first + size}) AS given(i) ORDER BY {SORTED_BY}"  # noqa: S608
            segment = Segment(Contents.ROWS, number, number, *times)
            write_query(folder, segment, query, connection)
            path = folder / segment.name
            if path.stat().st_size >= INDEXED_BYTES_MIN:
                write_index(folder, segment, connection)
            first += size


def filters(reader: DecisionReader, rows: int) -> dict[str, DecisionFilters]:
    """Each filter, for rows from the middle of the log where one row is meant."""
    middle_us = START_US + rows // 2 * INTERVAL_US
    hour_us = 3_600_000_000
    (found,) = reader.page(DecisionFilters(to_us=middle_us), 1, DEADLINE_S).decisions
    row = dict(zip((column.name for column in COLUMNS), found.row, strict=True))
    request_id, decision_id = str(row["request_id"]), str(row["decision_id"])
    around = (middle_us - hour_us, middle_us + hour_us)
    return {
        "none": DecisionFilters(),
        "integration": DecisionFilters(integration=str(row["integration"])),
        "integration, verdict": DecisionFilters(integration="integration-0004", verdict="DENY_403"),
        "credential": DecisionFilters(credential=str(row["credential"])),
        "verdict": DecisionFilters(verdict="DENY_403"),
        "reason": DecisionFilters(reason="rate_limited"),
        "scope": DecisionFilters(scope="orders:write"),
        "method": DecisionFilters(method="POST"),
        "address": DecisionFilters(addresses=parse_cidr(str(row["client_address"]))),
        "address of few requests": DecisionFilters(addresses=parse_cidr("10.3.7.99")),
        "address, all integrations": DecisionFilters(addresses=parse_cidr("172.16.7.9")),
        "address, no match": DecisionFilters(addresses=parse_cidr("10.3.7.255")),
        "CIDR /24": DecisionFilters(addresses=parse_cidr("10.3.7.0/24")),
        "CIDR /20": DecisionFilters(addresses=parse_cidr("10.3.16.0/20")),
        "path prefix": DecisionFilters(path_prefix="/v1/orders/99"),
        "path prefix, no match": DecisionFilters(path_prefix="/v1/other"),
        "path prefix, no match, all read": DecisionFilters(path_prefix="/v1/orders/5x"),
        "span of two hours": DecisionFilters(*around),
        "request id, in two hours": DecisionFilters(*around, request_id=request_id),
        "request id": DecisionFilters(request_id=request_id),
        "decision id": DecisionFilters(decision_id=decision_id),
        "request id, no match": DecisionFilters(request_id=request_id[:-1] + "x"),
    }


def main(rows: int, folder: Path) -> None:
    """Write a log to *folder* unless it has one, and print how long a page of each filter takes."""
    began = perf_counter()
    if not (folder / SIDECAR).exists():
        write_log(folder / SIDECAR, rows)
    sizes = [path.stat().st_size for path in (folder / SIDECAR).iterdir()]
    took_s = perf_counter() - began
    print(
        f"{rows} rows in {len(sizes)} files, {sum(sizes) / rows:.1f} bytes a row, written in {took_s:.0f} s"
    )
    reader = DecisionReader(folder)
    print("\n| filter | rows | time | processor time |\n|---|---|---|---|")
    for label, wanted in filters(reader, rows).items():
        wall_s, cpu_s = perf_counter(), process_time()
        page = reader.page(wanted, LIMIT, DEADLINE_S)
        wall_s, cpu_s = perf_counter() - wall_s, process_time() - cpu_s
        print(f"| {label} | {len(page.decisions)} | {wall_s * 1000:.0f} ms | {cpu_s * 1000:.0f} ms |")


def start(rows: int | str = ROWS, folder: str = "") -> None:
    """Measure *rows* in *folder*, '' = in a folder that is removed afterwards."""
    with TemporaryDirectory(prefix="decision-log-") as name:
        main(int(rows), Path(folder or name))


if __name__ == "__main__":  # python -m tests.measure.decision_log [ROWS [DIR]]
    start(*sys.argv[1:])

"""
Measures `sidecar simulate` on a log of a million rows: `make measure-simulate`, or ROWS=100000.

Every row has a path of its own, so that no evaluation is reused: the slowest case.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from sidecar.domain.decision_rows import COLUMN_NAMES, COLUMNS, DecisionRow
from sidecar.domain.replay import Replay
from sidecar.process.simulation import LogSpan, simulate
from sidecar.stores.decisions.reader import DecisionReader
from tests.building import NOW_US, make_integration, make_policy
from tests.decision_log import write_rows

ROWS = 1_000_000
FILE_ROWS = 100_000
INTERVAL_US = 20_000
"""50 requests a second: a million are five and a half hours of a busy integration."""


def row(number: int) -> DecisionRow:
    """An allowed request."""
    at_us = NOW_US + number * INTERVAL_US
    given: dict[str, str | int] = {
        "time": at_us,
        "decision_id": f"{number:022x}",
        "integration": "acme",
        "credential": "key1",
        "verdict": "ALLOW",
        "reason": "ok",
        "method": "GET",
        "path": f"/v1/orders/{number}",
        "scope": "orders:read",
        "client_address": f"192.0.2.{number % 250}",
        "route": "/v1/orders/{id}",
        "limit_rpm": 6_000,
        "reset_at": at_us + 10_000,
        "store_time": at_us,
        "generation": 1,
    }
    blank = {column.name: "" if column.sql_type == "VARCHAR" else 0 for column in COLUMNS}
    return tuple({**blank, **given}[name] for name in COLUMN_NAMES)


def main(rows: int) -> None:
    """Write a log, simulate a lower limit and an allowlist, and print the time."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "one"
        log.mkdir()
        for number, first in enumerate(range(0, rows, FILE_ROWS), 1):
            write_rows(log, number, map(row, range(first, min(rows, first + FILE_ROWS))))
        record = make_integration(allowlist=["192.0.2.0/24"], rate_limit_rpm=2_000, burst=100)
        replay = Replay(make_policy(), record)
        wall_s, cpu_s = perf_counter(), process_time()
        span = LogSpan("acme", NOW_US, NOW_US + rows * INTERVAL_US)
        result = simulate(DecisionReader(Path(folder)), span, replay, has_own_buckets=False)
        wall_s, cpu_s = perf_counter() - wall_s, process_time() - cpu_s
    assert result.is_complete
    assert replay.rows == rows
    print(
        f"{rows} rows in {cpu_s:.1f} s of processor time ({wall_s:.1f} s),"
        f" {cpu_s / rows * 1e6:.1f} µs a row; {replay.newly_refused} newly refused"
    )


if __name__ == "__main__":  # python -m tests.measure.simulate [ROWS]
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)

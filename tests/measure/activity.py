"""
Measures `sidecar activity` and the review on 90 days of rollups: `make measure-activity`, or KEYS=500.

KEYS is the number of keys of each kind, integration and hour; 500 is the most that a rollup keeps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from sidecar.domain.activity import DAY_US, HISTORY_DAYS
from sidecar.stores.decisions.activity import read_activity, read_scope_uses
from sidecar.stores.decisions.parquet import connect, write_query
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.decisions.rollup import COLUMNS, KINDS
from sidecar.stores.decisions.segments import Contents, Segment

KEYS = 40
INTEGRATIONS = 50
START_US = 1_763_942_400_000_000
"""2025-11-24 00:00 UTC: the start of the window."""
DEADLINE_S = 600.0


def write_day(folder: Path, day: int, keys: int) -> None:
    """Write the rollup of a day, 0 = the day of the window, as the writer's upkeep leaves it."""
    from_us, number = START_US + day * DAY_US, day + HISTORY_DAYS + 1
    hour = f"make_timestamp({from_us} + hour_number * 3600000000)"
    values = {
        "kind": "kind",
        "key": f"kind || hash(key_number * 97 + hour_number + {day} * 24) % {keys * 4}",
        "integration": "format('integration-{:02d}', integration_number)",
        "hour": hour,
        "reason": "CASE key_number % 20 WHEN 0 THEN 'rate_limited' ELSE 'ok' END",
        "count": "100",
        "first_seen": hour,
        "last_seen": f"{hour} + INTERVAL 59 MINUTE",
    }
    query = (
        f"SELECT {', '.join(f'({values[name]})::{sql_type} AS {name}' for name, sql_type in COLUMNS.items())}"  # noqa: S608
        f" FROM range({INTEGRATIONS}) integrations(integration_number), range(24) hours(hour_number),"
        f" (SELECT unnest({list(KINDS)}) AS kind), range({keys}) keys(key_number)"
        " ORDER BY integration, hour, kind, key"
    )
    segment = Segment(Contents.ROLLUP, number, number, from_us, from_us + DAY_US - 1)
    with connect(folder) as connection:
        write_query(folder, segment, query, connection)


def main(keys: int) -> None:
    """Write the rollups, and print how long the two queries take."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "one"
        log.mkdir()
        for day in range(-HISTORY_DAYS, 1):
            write_day(log, day, keys)
        size_mib = sum(path.stat().st_size for path in log.glob("rollup-*")) / 2**20
        reader, to_us = DecisionReader(Path(folder)), START_US + DAY_US
        began_s = perf_counter()
        activity = read_activity(reader, "integration-07", START_US, to_us, 0, DEADLINE_S)
        activity_s, began_s = perf_counter() - began_s, perf_counter()
        names = [f"integration-{number:02}" for number in range(INTEGRATIONS)]
        read_scope_uses(reader, names, to_us - HISTORY_DAYS * DAY_US, to_us, DEADLINE_S)
        review_s = perf_counter() - began_s
    assert activity.requests == 24 * keys * 100
    print(
        f"{HISTORY_DAYS} days, {INTEGRATIONS} integrations, {keys} keys of each kind an hour:"
        f" {size_mib:.0f} MiB; activity {activity_s:.1f} s, uses of scopes for the review {review_s:.1f} s"
    )


if __name__ == "__main__":  # python -m tests.measure.activity [KEYS]
    main(int(sys.argv[1]) if len(sys.argv) > 1 else KEYS)

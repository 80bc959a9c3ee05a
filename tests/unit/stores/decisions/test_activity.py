"""Counts of an integration's requests, read from real files: rollups, and rows that have none yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.domain.activity import DAY_US, HISTORY_DAYS, Activity, KeyCount
from sidecar.domain.decision_rows import DecisionRow
from sidecar.stores.decisions.activity import read_activity, read_scope_uses
from sidecar.stores.decisions.parquet import quoted, write_query
from sidecar.stores.decisions.queries import DecisionLogTimeoutError
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.decisions.rollup import rollup_query
from sidecar.stores.decisions.segments import Contents, Segment
from tests.decision_log import SECOND_US, START_US, decision_row, write_segment

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
NOW_US = START_US + DAY_US
DEADLINE_S = 60.0


def write_rollup(folder: Path, segment: Segment) -> None:
    """Write the rollup of the rows file *segment*, as compaction does."""
    rollup = segment._replace(contents=Contents.ROLLUP)
    write_query(folder, rollup, rollup_query(f"read_parquet({quoted(folder / segment.name)})"))


def old_rows() -> list[DecisionRow]:
    """Rows from before the window: 8, 40 and 100 days ago."""
    return [
        decision_row(-8 * DAY_S, "o1", scope="crm:read"),
        decision_row(-8 * DAY_S + 1, "o2", client_address="203.0.113.5", credential="key0"),
        decision_row(-40 * DAY_S, "o3", scope="finance:read"),
        decision_row(-100 * DAY_S, "o4", scope="skus:read", client_address="198.51.100.1"),
        decision_row(-8 * DAY_S, "o5", integration="bolt", scope="tasks:read"),
    ]


def new_rows() -> list[DecisionRow]:
    """Rows of the window, which begins at `START_US`."""
    refused = {"verdict": "DENY_403", "reason": "scope_missing", "scope": "webhooks:write"}
    return [
        decision_row(1, "n1"),
        decision_row(HOUR_S + 1, "n2", client_address="2001:db8::1"),
        decision_row(HOUR_S + 2, "n3", **refused),
        decision_row(HOUR_S + 2, "n4", integration="", client_address="192.0.2.200", reason="key_flood"),
        decision_row(HOUR_S + 3, "n5", integration="", client_address="198.18.0.1", reason="key_flood"),
        decision_row(HOUR_S + 3, "n6", integration="bolt"),
    ]


@pytest.fixture(params=["rows", "rollups", "rollups alone"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> DecisionReader:
    """A log of two sidecars; `rollups alone` = retention has removed the old rows."""
    old = write_segment(tmp_path / "a", 1, old_rows())
    write_segment(tmp_path / "b", 1, new_rows()[:3])
    new = write_segment(tmp_path / "a", 2, new_rows()[3:])
    if request.param != "rows":
        write_rollup(tmp_path / "a", old)
        write_rollup(tmp_path / "a", new)
    if request.param == "rollups alone":
        (tmp_path / "a" / old.name).unlink()
    return DecisionReader(tmp_path)


def read(log: DecisionReader, integration: str = "acme", created_at_us: int = 0) -> Activity:
    """The activity of the day from `START_US`."""
    return read_activity(log, integration, START_US, NOW_US, created_at_us, DEADLINE_S)


def test_read__counts_the_window_and_remembers_the_time_before(log: DecisionReader) -> None:
    """Rows and rollups give the same counts, of this integration alone."""
    found = read(log)
    assert found.requests == 3
    assert {hour_us: n for hour_us, n in found.hours.items() if hour_us >= START_US} == {
        START_US: 1,
        START_US + HOUR_S * SECOND_US: 2,
    }
    assert found.requests_between(START_US - 28 * DAY_US, START_US) == 2
    at_us = START_US + (HOUR_S + 1) * SECOND_US
    assert KeyCount("address", "2001:db8::/64", "ok", 1, 0, at_us, at_us) in found.counts
    known = next(c for c in found.of("address") if c.key == "192.0.2.0/24" and c.reason == "ok")
    assert (known.requests, known.baseline) == (1, 1)
    assert known.first_seen_us == START_US - 40 * DAY_US
    assert {c.key: c.last_seen_us for c in found.of("scope") if c.reason == "ok"} == {
        "crm:read": START_US - 8 * DAY_US,
        "finance:read": START_US - 40 * DAY_US,
        "orders:read": at_us,
    }
    assert {c.key for c in found.of("credential")} == {"key0", "key1"}
    assert found.is_complete


def test_read__history_ends_after_90_days(log: DecisionReader) -> None:
    """The log is older, but what was used longer ago counts as not seen."""
    found = read(log)
    assert found.begins_us == START_US - 100 * DAY_US
    assert min(c.first_seen_us for c in found.counts) >= START_US - HISTORY_DAYS * DAY_US
    assert read(log, created_at_us=START_US - 5).begins_us == START_US - 40 * DAY_US
    assert read(log, "zeta", created_at_us=START_US - 5).begins_us == START_US - 5


def test_read__new_addresses_are_those_that_older_rows_do_not_have(log: DecisionReader) -> None:
    """Rows alone know single addresses: where retention has removed them, more seem new, since later."""
    new = read(log).new_addresses
    assert new is not None
    has_old_rows = new.since_us == START_US - 30 * DAY_US
    assert has_old_rows or new.since_us > START_US
    assert [total.key for total in new.busiest] == (
        ["2001:db8::1"] if has_old_rows else ["192.0.2.1", "2001:db8::1"]
    )
    assert new.number == len(new.busiest)


def test_read__invalid_keys_of_the_same_networks(log: DecisionReader) -> None:
    """A flood from elsewhere is not about this integration."""
    assert read(log).invalid_keys == {"192.0.2.0/24": 1}
    assert read(log, "bolt").invalid_keys == {"192.0.2.0/24": 1}


def test_read__an_integration_without_requests(log: DecisionReader, tmp_path: Path) -> None:
    """It has no counts; without any file the log begins now."""
    found = read(log, "zeta")
    assert (found.requests, found.hours, found.counts) == (0, {}, [])
    (tmp_path / "empty" / "a").mkdir(parents=True)
    assert read(DecisionReader(tmp_path / "empty")).begins_us == NOW_US


def test_scope_uses__of_several_integrations(log: DecisionReader) -> None:
    """A scope that was refused as not granted was not used."""
    uses = read_scope_uses(log, ["acme", "bolt", "zeta"], NOW_US - HISTORY_DAYS * DAY_US, NOW_US, DEADLINE_S)
    assert uses == {
        "acme": {
            "crm:read": START_US - 8 * DAY_US,
            "finance:read": START_US - 40 * DAY_US,
            "orders:read": START_US + (HOUR_S + 1) * SECOND_US,
        },
        "bolt": {"tasks:read": START_US - 8 * DAY_US, "orders:read": START_US + (HOUR_S + 3) * SECOND_US},
        "zeta": {},
    }


def test_read__ends_at_its_deadline(log: DecisionReader) -> None:
    """A query that takes too long is interrupted."""
    with pytest.raises(DecisionLogTimeoutError):
        read_activity(log, "acme", START_US, NOW_US, 0, 0.0)

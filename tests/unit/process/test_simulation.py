"""A decision log on the disk, replayed against a changed record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sidecar.cli.root import app
from sidecar.domain.decision_rows import COLUMN_NAMES, COLUMNS, DecisionRow
from sidecar.domain.effective import in_force
from sidecar.domain.enforcement import Rule
from sidecar.domain.integrations import LimitRaise, Status
from sidecar.domain.replay import LoggedRequest, Replay
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.process import simulation as s
from sidecar.sources.file_faults import FileFaultsError
from sidecar.stores.decisions.missing import Cause, MissingSpan, add_missing
from sidecar.stores.decisions.reader import DecisionReader
from tests.building import NOW_US, SECOND_US, make_integration, make_key
from tests.decision_log import write_rows
from tests.property.test_replay import POLICY, recorded

CATALOGUE = ScopeCatalogue()
KEY = make_key()
RECORD = make_integration(KEY, rate_limit_rpm=60, burst=2)
HOUR_US = 3_600 * SECOND_US
SPAN = s.LogSpan("acme", NOW_US - HOUR_US, NOW_US + 10 * HOUR_US)


def as_row(row: LoggedRequest, **values: object) -> DecisionRow:
    """A complete row of the log."""
    given = {**row._asdict(), "integration": "acme", **values}
    blank = {column.name: "" if column.sql_type == "VARCHAR" else 0 for column in COLUMNS}
    return tuple(
        {**blank, **{name: given[name] for name in given.keys() & blank.keys()}}[name]
        for name in COLUMN_NAMES
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two requests a second for three minutes, of which the limit refused half, from two sidecars."""
    rows = recorded(RECORD, 360 * [(500_000, ("GET", "/v1/orders/1"), None, "192.0.2.1")], KEY)
    folder = tmp_path_factory.mktemp("log")
    for name, mine in (("a", rows[::2]), ("b", rows[1::2])):
        (folder / name).mkdir()
        write_rows(folder / name, 1, [as_row(row) for row in mine] + [as_row(mine[0], integration="other")])
    return folder


@pytest.fixture
def in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the log in several slices."""
    monkeypatch.setattr(s, "SLICE_ROWS", 150)


@pytest.mark.usefixtures("in_slices")
def test_simulate__the_unchanged_record_changes_nothing(log: Path) -> None:
    """Rows of all sidecars, in the order of the store, over the borders of slices."""
    replay = Replay(POLICY, s.changed_record(RECORD, {}, CATALOGUE, NOW_US))
    result = s.simulate(DecisionReader(log), SPAN, replay, has_own_buckets=False)
    assert result.is_complete
    assert (replay.rows, replay.changes, replay.kept) == (360, {}, 0)
    assert replay.refused_logged == 180 - 1


def test_simulate__a_window_begins_with_the_bucket_of_its_first_row(log: Path) -> None:
    """The rows before it have used tokens."""
    replay = Replay(POLICY, RECORD)
    window = s.LogSpan("acme", NOW_US + 60 * SECOND_US, NOW_US + 120 * SECOND_US)
    s.simulate(DecisionReader(log), window, replay, has_own_buckets=False)
    assert (replay.rows, replay.changes) == (120, {})


def test_simulate__missing_rows_make_it_incomplete(log: Path) -> None:
    """The result says in which spans."""
    span = MissingSpan(NOW_US, NOW_US + SECOND_US, 0, 5, 0, Cause.BUFFER_FULL)
    add_missing(log / "a", [span])
    try:
        result = s.simulate(DecisionReader(log), SPAN, Replay(POLICY, RECORD), has_own_buckets=False)
        early = s.LogSpan("acme", 0, NOW_US - 1)
        before = s.simulate(DecisionReader(log), early, Replay(POLICY, RECORD), has_own_buckets=False)
    finally:
        (log / "a" / "missing.jsonl").unlink()
    assert not result.is_complete
    assert [missing.allowed for missing in result.missing] == [5]
    assert before.is_complete


def test_simulate__a_row_far_from_its_store_time_is_said_to_be_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose clock is days off must not look like a shorter log."""
    monkeypatch.setattr(s, "SLICE_ROWS", 1)
    row = recorded(RECORD, [(0, ("GET", "/v1/orders/1"), None, "192.0.2.1")], KEY)[0]
    (tmp_path / "a").mkdir()
    write_rows(tmp_path / "a", 1, [as_row(row), as_row(row, store_time=row.store_time - 9 * HOUR_US)])
    result = s.simulate(DecisionReader(tmp_path), SPAN, Replay(POLICY, RECORD), has_own_buckets=False)
    assert (result.replay.rows, result.unread, result.is_complete) == (1, 1, False)


def test_changed_record__is_in_force() -> None:
    """A new limit ends a raise, a new allowlist is on, and a suspension does not hide everything."""
    raised = replace(RECORD, limit_raise=LimitRaise(600, None, NOW_US + 1), status=Status.SUSPENDED)
    same = s.changed_record(raised, {}, CATALOGUE, NOW_US)
    assert (same.rate_limit_rpm, same.status) == (600, Status.ACTIVE)
    settings = s.parse_settings(["limit=30", "allowlist=192.0.2.0/24, 2001:db8::/32", "shadow=limit"])
    off = replace(raised, is_allowlist_enabled=False)
    changed = s.changed_record(off, settings, CATALOGUE, NOW_US)
    assert (changed.rate_limit_rpm, changed.burst, changed.shadow) == (30, 2, {Rule.LIMIT})
    assert list(map(str, changed.ip_allowlist)) == ["192.0.2.0/24", "2001:db8::/32"]
    assert s.changed_record(raised, {"status": "suspended"}, CATALOGUE, NOW_US).status is Status.SUSPENDED
    assert in_force(changed, NOW_US) == changed
    with pytest.raises(FileFaultsError, match="rate limit is 20000"):
        s.changed_record(RECORD, {"rate_limit_rpm": 20_000}, CATALOGUE, NOW_US)


@pytest.mark.parametrize("text", ["limit", "name=x", "credentials=", "=", "nosuch=1"])
def test_parse_settings__names_the_keys(text: str) -> None:
    """What cannot be simulated is refused, with what can."""
    with pytest.raises(s.SettingError, match=r"must be KEY=VALUE with one of the keys limit, allowlist, "):
        s.parse_settings([text])


def test_simulate__on_the_command_line(log: Path, tmp_path: Path) -> None:
    """The record from the registry file, the routes from the configuration; a table, notes and JSON."""
    registry = tmp_path / "registry.yaml"
    registry.write_text(
        "integrations: [{id: acme, name: Acme, scopes: [orders:read], rate_limit_rpm: 60, burst: 2}]"
    )
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        f"registry: {registry}\nroutes: [{{methods: GET, path: '/v1/orders/{{id}}', scope: 'orders:read'}}]"
    )
    begin = ["simulate", "--config", str(config), "--log", str(log), "--integration"]
    window = ["--since", "2025-11-24T00:00Z", "--until", "2025-11-25T00:00Z"]
    run = CliRunner().invoke
    # The log's decisions shared one bucket, but the configuration has an embedded store.
    shared = {"SIDECAR_STORE": "redis://127.0.0.1:1"}
    result = run(app, [*begin, "acme", *window, "--set", "limit=30", "--json"], env=shared)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["rows"], shown["newly_refused"] > 80, shown["newly_admitted"]) == (360, True, 0)
    assert shown["set"] == {"rate_limit_rpm": 30}
    assert shown["changes"][0]["becomes"] == "rate_limited"
    text = run(app, [*begin, "acme", *window, "--set", "scopes="], env=shared)
    assert "ok\tscope_missing\t" in text.stdout
    assert "shadow" not in text.stderr
    shadowed = run(app, [*begin, "acme", *window, "--set", "limit=1", "--set", "shadow=limit"], env=shared)
    assert "newly refused\t0\n" in shadowed.stdout
    assert "in shadow" in shadowed.stderr and "--set shadow=" in shadowed.stderr
    for wrong, code in ((["nobody"], 1), (["acme", "--set", "limit=0"], 1), (["acme", "--set", "x=1"], 2)):
        assert run(app, [*begin, *wrong], env=shared).exit_code == code
    assert run(app, [*begin, "acme", "--since", "1h", "--until", "2h"], env=shared).exit_code == 2

"""Small files become large ones with the same rows, and the oldest rows go first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.stores.decisions import upkeep
from sidecar.stores.decisions.filters import LATEST_US
from sidecar.stores.decisions.parquet import connect, write_query
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.decisions.rewriting import LOCK_FILE, rewriting
from sidecar.stores.decisions.rollup import rollup_query
from sidecar.stores.decisions.segments import Contents, Segment, current, segments_of
from sidecar.stores.decisions.upkeep import (
    DAY_US,
    FACTOR,
    LEVEL_MAX,
    MERGED_BYTES_MAX,
    ROLLUP_DAYS,
    expire,
    expire_abandoned,
    level_of,
    merge,
    next_merge,
)
from tests.decision_log import START_US, decision_row, write_segment


def batch(number: int) -> Segment:
    """A file of one batch."""
    return Segment(Contents.ROWS, number, number, number, number)


@given(st.integers(0, 2_500))
@settings(max_examples=10, deadline=None)
def test_next_merge__keeps_the_number_of_files_small(batches: int) -> None:
    """Of n batches at most 11 files stay on each level, and every batch is in exactly one of them."""
    sizes: dict[Segment, int] = {}
    for number in range(1, batches + 1):
        sizes[batch(number)] = 1
        while parts := next_merge(sizes):
            for part in parts:
                del sizes[part]
            sizes[Segment(Contents.ROWS, parts[0].first, parts[-1].last, 0, 0)] = 1
    assert len(sizes) <= (FACTOR - 1) * LEVEL_MAX
    assert list(current(sizes)) == sorted(sizes)
    assert sum(s.last - s.first + 1 for s in sizes) == batches


def test_next_merge__leaves_large_files_alone() -> None:
    """Files that are large already are not sorted again, and stop no others."""
    large = {batch(number): MERGED_BYTES_MAX // 4 for number in range(1, 21)}
    assert next_merge(large) == []
    small = {batch(number): 1 for number in range(21, 21 + FACTOR)}
    assert next_merge({**large, **small}) == list(small)


def test_next_merge__takes_a_straggler_along() -> None:
    """A small file between large ones is merged with them."""
    sizes = {Segment(Contents.ROWS, 20 * n, 20 * n + 11, 0, 0): 1 for n in range(1, FACTOR + 1)}
    straggler = batch(32)
    assert level_of(straggler) == 0
    assert straggler in next_merge({**sizes, straggler: 1})


def test_merge__has_every_row_once_and_a_rollup(tmp_path: Path) -> None:
    """The parts are removed; the rows are sorted by integration and time; times span all parts."""
    for number in range(1, FACTOR + 1):
        row = decision_row(number, f"id{number}", integration=f"i{number % 3}")
        write_segment(tmp_path, number, [row])
    with connect(tmp_path) as connection:
        assert merge(tmp_path, connection)
        assert not merge(tmp_path, connection)
    rollup, rows = sorted(segments_of(tmp_path))
    assert (rows.first, rows.last, rows.contents) == (1, FACTOR, Contents.ROWS)
    assert (rollup.first, rollup.last, rollup.contents) == (1, FACTOR, Contents.ROLLUP)
    assert (rows.from_us, rows.to_us) == (START_US + 1_000_000, START_US + FACTOR * 1_000_000)
    found = duckdb.sql(f"SELECT integration, decision_id FROM '{tmp_path / rows.name}'").fetchall()  # noqa: S608
    numbers = sorted(range(1, FACTOR + 1), key=lambda number: (number % 3, number))
    assert found == [(f"i{number % 3}", f"id{number}") for number in numbers]
    assert {path.name for path in tmp_path.iterdir()} == {rows.name, rollup.name, LOCK_FILE}


def counts(folder: Path) -> list[tuple[Any, ...]]:
    """What the rollups of *folder* add up to, over its rows that have none."""
    reader = DecisionReader(folder.parent)
    query = "SELECT kind, key, reason, sum(count), min(first_seen), max(last_seen) FROM rollups GROUP BY ALL"
    return sorted(reader.rollup_sql(query, {}, 60.0, 0, LATEST_US, ["acme"]))


def test_merge__rollups_of_large_files(tmp_path: Path) -> None:
    """Where rows stay as they are, their rollups become few, and count the same."""
    folder = tmp_path / "a"
    with connect(tmp_path) as connection:
        for number in range(1, FACTOR + 1):
            rows = write_segment(
                folder, number, [decision_row(number, f"id{number}", scope=f"s{number}:read")]
            )
            query = rollup_query(f"read_parquet('{folder / rows.name}')")
            write_query(folder, rows._replace(contents=Contents.ROLLUP), query, connection)
            (folder / rows.name).unlink()
        before = counts(folder)
        assert merge(folder, connection)
        assert not merge(folder, connection)
    (rollup,) = segments_of(folder)
    assert (rollup.contents, rollup.first, rollup.last) == (Contents.ROLLUP, 1, FACTOR)
    assert (rollup.from_us, rollup.to_us) == (START_US + 1_000_000, START_US + FACTOR * 1_000_000)
    assert counts(folder) == before
    assert len(before) == FACTOR + 4


def test_expire__rows_without_a_rollup_get_one(tmp_path: Path) -> None:
    """The counts are the same before and after the rows are removed."""
    folder = tmp_path / "a"
    segment = write_segment(folder, 1, [decision_row(1, "id"), decision_row(2, "id2", reason="rate_limited")])
    before = counts(folder)
    with connect(folder) as connection:
        assert expire(folder, segment.to_us + 8 * DAY_US, 7, 1 << 40, connection) == 0
    assert segments_of(folder) == [segment._replace(contents=Contents.ROLLUP)]
    assert counts(folder) == before


def test_upkeep__waits_for_an_erasure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is merged or removed while an erasure rewrites files: erased rows would be written again."""
    monkeypatch.setattr(upkeep, "LOCK_TIMEOUT_S", 0.0)
    segments = [write_segment(tmp_path, n, [decision_row(n, "id")]) for n in range(1, FACTOR + 1)]
    with connect(tmp_path) as connection, rewriting(tmp_path, 0.0):
        with pytest.raises(TimeoutError):
            merge(tmp_path, connection)
        with pytest.raises(TimeoutError):
            expire(tmp_path, START_US + 99 * DAY_US, 7, 1, connection)
    assert segments_of(tmp_path) == segments


def test_expire__by_days_and_by_bytes(tmp_path: Path) -> None:
    """The oldest batches go first; rollups stay, for a year; leftovers of a merge go at once."""
    segments = [write_segment(tmp_path, number, [decision_row(number, "id")]) for number in (1, 2, 3)]
    rollup = Segment(Contents.ROLLUP, 1, 1, START_US, START_US)
    (tmp_path / rollup.name).touch()
    size = (tmp_path / segments[0].name).stat().st_size
    now_us = segments[0].to_us + 7 * DAY_US
    with connect(tmp_path) as connection:
        assert expire(tmp_path, now_us, 7, 10 * size, connection) == sum(
            (tmp_path / segment.name).stat().st_size for segment in segments
        )
        expire(tmp_path, now_us + 1, 7, 10 * size, connection)
        assert set(segments_of(tmp_path)) == {rollup, *segments[1:]}
        last_size = (tmp_path / segments[2].name).stat().st_size
        assert expire(tmp_path, now_us, 7, size, connection) == last_size
        (tmp_path / Segment(Contents.ROWS, 3, 4, START_US, now_us).name).touch()
        expire(tmp_path, now_us, 7, size, connection)
        assert not (tmp_path / segments[2].name).exists()
        expire(tmp_path, START_US + (ROLLUP_DAYS + 1) * DAY_US, 7, size, connection)
    assert segments_of(tmp_path) == []


def test_expire_abandoned__rows_of_sidecars_that_are_no_more(tmp_path: Path) -> None:
    """A folder without a younger row loses its rows and keeps its counts; other folders stay as they are."""
    own, old, live, foreign = (tmp_path / name for name in ("own", "old", "live", "foreign"))
    for folder in (own, old, live):
        write_segment(folder, 1, [decision_row(1, "id")])
    young = write_segment(live, 2, [decision_row(60, "id2")])
    foreign.mkdir()
    (tmp_path / "file").touch()
    before = counts(old)
    with connect(own) as connection:
        expire_abandoned(own, young.to_us + 7 * DAY_US, 7, connection)
    assert [segment.contents for segment in segments_of(old)] == [Contents.ROLLUP]
    assert counts(old) == before
    assert [len(segments_of(folder)) for folder in (own, live, foreign)] == [1, 2, 0]

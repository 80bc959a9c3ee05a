"""Small files become large ones with the same rows, and the oldest rows go first."""

from __future__ import annotations

from pathlib import Path

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.stores.decisions.parquet import connect
from sidecar.stores.decisions.segments import Contents, Segment, current, segments_of
from sidecar.stores.decisions.upkeep import (
    DAY_US,
    FACTOR,
    LEVEL_MAX,
    MERGED_BYTES_MAX,
    ROLLUP_DAYS,
    expire,
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
    assert {path.name for path in tmp_path.iterdir()} == {rows.name, rollup.name, "upkeep.lock"}


def test_expire__by_days_and_by_bytes(tmp_path: Path) -> None:
    """The oldest batches go first; rollups stay, for a year; leftovers of a merge go at once."""
    segments = [write_segment(tmp_path, number, [decision_row(number, "id")]) for number in (1, 2, 3)]
    rollup = Segment(Contents.ROLLUP, 1, 1, START_US, START_US)
    (tmp_path / rollup.name).touch()
    size = (tmp_path / segments[0].name).stat().st_size
    now_us = segments[0].to_us + 7 * DAY_US
    assert expire(tmp_path, now_us, 7, 10 * size) == sum(
        (tmp_path / segment.name).stat().st_size for segment in segments
    )
    expire(tmp_path, now_us + 1, 7, 10 * size)
    assert set(segments_of(tmp_path)) == {rollup, *segments[1:]}
    assert expire(tmp_path, now_us, 7, size) == (tmp_path / segments[2].name).stat().st_size
    (tmp_path / Segment(Contents.ROWS, 3, 4, START_US, now_us).name).touch()
    expire(tmp_path, now_us, 7, size)
    assert not (tmp_path / segments[2].name).exists()
    expire(tmp_path, START_US + (ROLLUP_DAYS + 1) * DAY_US, 7, size)
    assert segments_of(tmp_path) == []

"""Names of decision-log files: they survive a round trip, and a compacted file replaces its parts."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sidecar.stores.decisions.segments import Contents, Segment, current, parse_name, segments_of


@given(
    st.sampled_from(Contents),
    st.integers(1, 10**10 - 1),
    st.integers(1, 10**10 - 1),
    st.integers(0, 10**16 - 1),
    st.integers(0, 10**16 - 1),
)
def test_name__round_trip(contents: Contents, first: int, last: int, from_us: int, to_us: int) -> None:
    """A name says everything about its file."""
    segment = Segment(contents, first, last, from_us, to_us)
    assert parse_name(segment.name) == segment


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.data())
def test_current__has_each_batch_once(sizes: list[int], data: st.DataObject) -> None:
    """Whatever of the replaced files is still there, every batch is read exactly once."""
    parts, compacted, number = [], [], 1
    for size in sizes:
        numbers = range(number, number + size)
        parts += [Segment(Contents.ROWS, n, n, n, n) for n in numbers]
        compacted.append(Segment(Contents.ROWS, number, number + size - 1, number, number + size - 1))
        number += size
    kept = data.draw(st.lists(st.sampled_from(compacted), unique=True))
    leftover = data.draw(st.lists(st.sampled_from(parts), unique=True))
    covered = {n for segment in kept for n in range(segment.first, segment.last + 1)}
    needed = [part for part in parts if part.first not in covered]
    found = list(current({*kept, *leftover, *needed}))
    assert [n for s in found for n in range(s.first, s.last + 1)] == list(range(1, number))


def test_segments__ignore_files_that_are_not_complete(tmp_path: Path) -> None:
    """Temporary files and files of others are not read."""
    segment = Segment(Contents.ROWS, 1, 1, 5, 9)
    for name in (segment.name, segment.name + ".tmp", "missing.jsonl", "rows-1.parquet"):
        (tmp_path / name).touch()
    assert segments_of(tmp_path) == [segment]


def test_overlap__includes_both_ends() -> None:
    """A row at the border of a span belongs to it."""
    segment = Segment(Contents.ROWS, 1, 1, 5, 9)
    assert [segment.overlaps(*span) for span in ((0, 4), (0, 5), (9, 12), (10, 12))] == [
        False,
        True,
        True,
        False,
    ]

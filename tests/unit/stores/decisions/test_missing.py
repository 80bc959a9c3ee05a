"""Spans with missing rows survive a round trip, a torn line, and the trimming of old spans."""

from __future__ import annotations

from pathlib import Path

from sidecar.stores.decisions.missing import (
    MISSING_FILE,
    SPANS_MAX,
    Cause,
    MissingSpan,
    add_missing,
    read_missing,
    trim_missing,
)


def span(from_us: int, to_us: int, allowed: int = 3, refused: int = 1) -> MissingSpan:
    """A span of worker 2 on the sidecar 'box'."""
    return MissingSpan(from_us, to_us, 2, allowed, refused, Cause.DISK, "box")


def sidecar_folder(tmp_path: Path) -> Path:
    """The folder of the sidecar 'box'."""
    folder = tmp_path / "box"
    folder.mkdir()
    return folder


def test_missing__round_trip(tmp_path: Path) -> None:
    """Spans are read in the order in which they were added; no file means no span."""
    folder = sidecar_folder(tmp_path)
    assert read_missing(folder) == []
    add_missing(folder, [span(1, 5)])
    add_missing(folder, [span(7, 8), span(9, 9, -1, -1)])
    assert read_missing(folder) == [span(1, 5), span(7, 8), span(9, 9, -1, -1)]
    assert [s.overlaps(5, 7) for s in read_missing(folder)] == [True, True, False]


def test_missing__survives_a_torn_line(tmp_path: Path) -> None:
    """What a killed writer began is skipped, and the next span has a line of its own."""
    folder = sidecar_folder(tmp_path)
    add_missing(folder, [span(1, 5)])
    with (folder / MISSING_FILE).open("a") as file:
        file.write('{"from_us": 6, "to')
    add_missing(folder, [span(7, 8)])
    assert read_missing(folder) == [span(1, 5), span(7, 8)]


def test_trim__drops_old_spans_and_merges_the_oldest(tmp_path: Path) -> None:
    """The file is bounded in time and in lines; no count is lost within the kept time."""
    folder = sidecar_folder(tmp_path)
    trim_missing(folder, 10)
    add_missing(folder, [span(1, 5), span(6, 10)])
    trim_missing(folder, 10)
    assert read_missing(folder) == [span(6, 10)]
    add_missing(folder, (span(n, n, 1, 0) for n in range(20, 20 + SPANS_MAX)))
    trim_missing(folder, 0)
    found = read_missing(folder)
    assert len(found) == SPANS_MAX // 2 + 1
    assert sum(s.allowed for s in found) == 3 + SPANS_MAX
    assert found[0].from_us == 6 and found[-1].to_us == 19 + SPANS_MAX

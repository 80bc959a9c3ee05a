"""What was recorded since an earlier answer, whatever the clocks did meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.stores.decisions.filters import DecisionFilters
from sidecar.stores.decisions.reader import DecisionPage, DecisionReader
from sidecar.stores.decisions.recorded import SIDECARS_MAX, parse_recorded
from sidecar.stores.decisions.segments import Contents, Segment, segments_of
from tests.decision_log import SECOND_US, START_US, decision_row, write_segment

DEADLINE_S = 60.0
HOUR_S = 3_600


def read(log: Path, after: DecisionPage | None = None, limit: int = 10) -> tuple[DecisionPage, list[object]]:
    """A page of what was recorded after the page *after*, and its ids."""
    since = None if after is None else parse_recorded(str(after.recorded))
    page = DecisionReader(log).page(DecisionFilters(), limit, DEADLINE_S, since=since)
    return page, [decision.row[1] for decision in page.decisions]


def test_recorded__only_what_is_new(tmp_path: Path) -> None:
    """Rows of new files come once, also of a sidecar that was not there before."""
    write_segment(tmp_path / "a", 1, [decision_row(1, "id1")])
    first, ids = read(tmp_path)
    assert ids == ["id1"]
    assert read(tmp_path, first)[1] == []
    write_segment(tmp_path / "a", 2, [decision_row(2, "id2")])
    write_segment(tmp_path / "b", 1, [decision_row(3, "id3")])
    second, ids = read(tmp_path, first)
    assert ids == ["id3", "id2"]
    assert read(tmp_path, second)[1] == []


def test_recorded__a_clock_that_was_set_back(tmp_path: Path) -> None:
    """New rows with older times are new, and older pages do not hide them."""
    write_segment(tmp_path / "a", 1, [decision_row(HOUR_S, "id1"), decision_row(HOUR_S + 1, "id2")])
    write_segment(tmp_path / "b", 1, [decision_row(HOUR_S, "id3")])
    first, _ = read(tmp_path)
    write_segment(tmp_path / "a", 2, [decision_row(1, "id4")])
    page, ids = read(tmp_path, first, limit=1)
    assert (ids, page.next_after) == (["id4"], None)


def test_recorded__a_merged_file_has_new_rows(tmp_path: Path) -> None:
    """Of a file with known and new batches the rows after the known ones come."""
    old = write_segment(tmp_path / "a", 1, [decision_row(1, "id1"), decision_row(60, "id2")])
    first, _ = read(tmp_path)
    rows = [decision_row(1, "id1"), decision_row(60, "id2"), decision_row(61, "id3")]
    new = write_segment(tmp_path / "a", 2, rows)
    (tmp_path / "a" / new.name).rename(tmp_path / "a" / new._replace(first=1).name)
    (tmp_path / "a" / old.name).unlink()
    assert read(tmp_path, first)[1] == ["id3", "id2"]  # id2 may be new: it is as young as the known ones


def test_recorded__a_folder_that_was_emptied(tmp_path: Path) -> None:
    """Where the numbers of batches begin anew, the time decides."""
    for number in (1, 2):
        write_segment(tmp_path / "a", number, [decision_row(number, f"id{number}")])
    first, _ = read(tmp_path)
    for segment in segments_of(tmp_path / "a"):
        (tmp_path / "a" / segment.name).unlink()
    write_segment(tmp_path / "a", 1, [decision_row(9, "id9")])
    assert read(tmp_path, first)[1] == ["id9"]


def test_recorded__its_text_is_bounded(tmp_path: Path) -> None:
    """Of many sidecars those with the latest rows are remembered; of the others the time decides."""
    for number in range(SIDECARS_MAX + 1):
        folder = tmp_path / f"host-{number}"
        folder.mkdir()
        time_us = START_US + number * HOUR_S * SECOND_US
        (folder / Segment(Contents.ROWS, 1, 1, time_us, time_us).name).touch()
    log = DecisionReader(tmp_path)
    recorded = log.page(DecisionFilters(to_us=1), 10, DEADLINE_S).recorded
    assert len(recorded.batches) == SIDECARS_MAX
    assert "host-0" not in recorded.batches
    assert parse_recorded(str(recorded)) == recorded
    assert log.page(DecisionFilters(), 10, DEADLINE_S, since=recorded).decisions == []


@pytest.mark.parametrize(
    "text", ["", "x", "1;a:1", "1;a:1:x", "1;a b:1:1", "1" * 19, "1;" + "a" * 129 + ":1:1"]
)
def test_recorded__refuses_other_texts(text: str) -> None:
    """A text that no answer had is refused."""
    with pytest.raises(ValueError, match="recorded"):
        parse_recorded(text)

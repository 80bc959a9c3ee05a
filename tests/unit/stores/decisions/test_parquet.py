"""Parquet files of the decision log hold exactly the rows that were handed over, or are absent."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from sidecar.domain.decision_rows import COLUMNS, DecisionRow
from sidecar.stores.decisions.lines import LATENCY_US_MAX, Lines, decision_rows
from sidecar.stores.decisions.parquet import write_lines
from sidecar.stores.decisions.segments import Contents, Segment, segments_of
from tests.decision_log import START_US, decision_row, lines_of

SEGMENT = Segment(Contents.ROWS, 7, 7, START_US, START_US + 9_000_000)


def read(path: Path) -> list[DecisionRow]:
    """The rows of the file at *path*, in its order, times in µs."""
    columns = ", ".join(f"epoch_us({c.name})" if c.is_time else c.name for c in COLUMNS)
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT {columns} FROM read_parquet('{path}')").fetchall()  # noqa: S608


def test_write_lines__writes_each_row(tmp_path: Path) -> None:
    """Every value survives, also the empty, the odd and the large; of several frames, in their order."""
    rows = [
        decision_row(5, "id1", path='/a,"b"', reset_at=START_US + 60_000_000, fallback="allow", worker=3),
        decision_row(9, "id2", remaining=-1, generation=2**53, path="/ü/☃ '", would_deny="ip_not_allowed"),
        decision_row(2, "id3", retry_after_us=-1, integration="", credential="", scope="", route=""),
        decision_row(2, "id4", latency_us=LATENCY_US_MAX),
    ]
    lines = [*lines_of(rows[:1]), *lines_of(rows[1:])]
    write_lines(tmp_path, SEGMENT, lines)
    assert segments_of(tmp_path) == [SEGMENT]
    assert read(tmp_path / SEGMENT.name) == rows
    assert [path.name for path in tmp_path.iterdir()] == [SEGMENT.name]
    assert (tmp_path / SEGMENT.name).stat().st_mode & 0o777 == 0o640
    assert [row for part in lines for row in decision_rows(part)] == rows
    assert lines[1].span_us == (START_US + 2_000_000, START_US + 9_000_000)


def test_write_lines__has_the_types_of_the_columns(tmp_path: Path) -> None:
    """Other engines read times as timestamps and numbers as numbers."""
    write_lines(tmp_path, SEGMENT, lines_of([decision_row(1, "id1")]))
    with duckdb.connect() as connection:
        described = connection.execute(f"DESCRIBE SELECT * FROM '{tmp_path / SEGMENT.name}'").fetchall()  # noqa: S608
    assert [(name, kind) for name, kind, *_ in described] == [(c.name, c.sql_type) for c in COLUMNS]


def test_write_lines__lines_without_their_numbers_are_no_file(tmp_path: Path) -> None:
    """A line too many would give rows the numbers of others: such a batch is an error."""
    [whole] = lines_of([decision_row(1, "id1")])
    with pytest.raises(OSError, match="2 rows, not 1"):
        write_lines(tmp_path, SEGMENT, [whole, Lines(whole.text)])
    assert not list(tmp_path.iterdir())


def test_write_lines__leaves_no_file_after_a_failure(tmp_path: Path) -> None:
    """A path that is taken stands for a full disk: an OSError, and nothing in the folder beside it."""
    (tmp_path / f".writing-{SEGMENT.name}").mkdir()
    with pytest.raises(OSError, match=r"rows-|Is a directory|directory"):
        write_lines(tmp_path, SEGMENT, lines_of([decision_row(1, "id1")]))
    assert segments_of(tmp_path) == []


def test_write__a_full_disk_is_named_by_the_system(tmp_path: Path) -> None:
    """The reason is the system's words, not the JSON of the library."""
    (tmp_path / f".writing-{SEGMENT.name}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"{SEGMENT.name}: No space left on device$"):
        write_lines(tmp_path, SEGMENT, lines_of([decision_row(1, "id1")]))
    assert list(tmp_path.iterdir()) == []

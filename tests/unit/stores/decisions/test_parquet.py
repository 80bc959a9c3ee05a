"""Parquet files of the decision log hold exactly the rows that were handed over, or are absent."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest

from sidecar.domain.decision_rows import COLUMN_NAMES, COLUMNS, DecisionRow
from sidecar.stores.decisions.parquet import csv_of, memory_file, write_csv, write_rows
from sidecar.stores.decisions.segments import Contents, Segment, segments_of

NOW_US = 1_764_000_000_123_456


def row(**values: str | int) -> DecisionRow:
    """A row with *values*; the rest is unknown."""
    unknown = {column.name: "" if column.sql_type == "VARCHAR" else 0 for column in COLUMNS}
    return tuple({**unknown, "time": NOW_US, **values}[name] for name in COLUMN_NAMES)


def read(path: Path) -> list[DecisionRow]:
    """The rows of the file at *path*, in its order, times in µs."""
    columns = ", ".join(f"epoch_us({c.name})" if c.is_time else c.name for c in COLUMNS)
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT {columns} FROM read_parquet('{path}')").fetchall()  # noqa: S608


def test_write_rows__sorts_by_integration_and_time(tmp_path: Path) -> None:
    """Every value survives, also the empty, the odd and the large; a file is named by its batch and times."""
    rows = [
        row(integration="zeta", time=NOW_US + 5, path='/a,"b"', reset_at=NOW_US + 60_000_000),
        row(integration="acme", time=NOW_US + 9, remaining=-1, generation=2**53, path="/ü/☃"),
        row(integration="acme", time=NOW_US + 2, retry_after_us=-1, decision_id="0123456789abcdef"),
        row(),
    ]
    segment = write_rows(tmp_path, 7, rows)
    assert segment == Segment(Contents.ROWS, 7, 7, NOW_US, NOW_US + 9)
    assert segments_of(tmp_path) == [segment]
    assert read(tmp_path / segment.name) == [rows[3], rows[2], rows[1], rows[0]]
    assert [path.name for path in tmp_path.iterdir()] == [segment.name]
    assert (tmp_path / segment.name).stat().st_mode & 0o777 == 0o640


def test_write_rows__has_the_types_of_the_columns(tmp_path: Path) -> None:
    """Other engines read times as timestamps and numbers as numbers."""
    segment = write_rows(tmp_path, 1, [row()])
    with duckdb.connect() as connection:
        described = connection.execute(f"DESCRIBE SELECT * FROM '{tmp_path / segment.name}'").fetchall()  # noqa: S608
    assert [(name, kind) for name, kind, *_ in described] == [(c.name, c.sql_type) for c in COLUMNS]


def test_write_rows__replaces_unprintable_characters(tmp_path: Path) -> None:
    """Callers choose paths and headers: control characters and lone surrogates reach no terminal."""
    segment = write_rows(tmp_path, 1, [row(path="/a\n\x00\x1b[2Jb\r\udcff"), row(path="/plain")])
    paths = {found[COLUMN_NAMES.index("path")] for found in read(tmp_path / segment.name)}
    assert paths == {"/a\ufffd\ufffd\ufffd[2Jb\ufffd\ufffd", "/plain"}


@pytest.mark.parametrize(
    "path", ["/plain", "/ü", "/a,b", '/"', "/a\nb", "/\x1b", "/ \u2028", "/'", "/\udcff", "", "%s"]
)
def test_csv__every_value_stays_in_its_column(tmp_path: Path, path: str) -> None:
    """Text of rows that is made the quick way or by the csv module reads back alike."""
    rows = [row(path=path, decision_id="id1"), row(path="/plain", decision_id="id2")]
    segment = Segment(Contents.ROWS, 1, 1, NOW_US, NOW_US)
    with memory_file() as file:
        os.write(file, csv_of(rows))
        write_csv(tmp_path, segment, file)
    place = COLUMN_NAMES.index("path")
    printed = "".join(char if char.isprintable() else "\ufffd" for char in path)
    expected = [(*rows[0][:place], printed, *rows[0][place + 1 :]), rows[1]]
    assert sorted(read(tmp_path / segment.name)) == sorted(expected)


def test_write_rows__needs_rows(tmp_path: Path) -> None:
    """An empty batch is a mistake of the caller; no file is left."""
    with pytest.raises(ValueError, match="at least one"):
        write_rows(tmp_path, 1, [])
    assert not list(tmp_path.iterdir())


def test_write_rows__leaves_no_file_after_a_failure(tmp_path: Path) -> None:
    """A path that is taken stands for a full disk: an OSError, and nothing in the folder beside it."""
    segment = Segment(Contents.ROWS, 1, 1, NOW_US, NOW_US)
    (tmp_path / f".writing-{segment.name}").mkdir()
    with pytest.raises(OSError, match=r"rows-|Is a directory|directory"):
        write_rows(tmp_path, 1, [row()])
    assert segments_of(tmp_path) == []

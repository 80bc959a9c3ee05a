"""The index of ids: files without an id are not read, and no row is missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.domain.cidr import Cidr, parse_address
from sidecar.domain.decision_rows import COLUMNS
from sidecar.stores.decisions import id_index, upkeep
from sidecar.stores.decisions.erasure import erase
from sidecar.stores.decisions.filters import DecisionFilters
from sidecar.stores.decisions.id_index import may_have, write_index
from sidecar.stores.decisions.parquet import ROW_GROUP_ROWS, connect, quoted, write_query
from sidecar.stores.decisions.queries import LogFile
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.decisions.segments import Contents, Segment, segments_of
from sidecar.stores.decisions.upkeep import DAY_US, FACTOR, expire, merge
from tests.decision_log import START_US, decision_row, write_segment

DEADLINE_S = 60.0


def indexed(folder: Path, number: int, **values: str) -> Segment:
    """A file with one row and its index."""
    segment = write_segment(folder, number, [decision_row(number, f"id{number}", **values)])
    with connect(folder) as connection:
        write_index(folder, segment, connection)
    return segment


def found(log: Path, filters: DecisionFilters) -> list[object]:
    """The ids of the rows that *filters* admit."""
    return [decision.row[1] for decision in DecisionReader(log).page(filters, 10, DEADLINE_S).decisions]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with three indexed files, of which the second cannot be read."""
    indexed(tmp_path / "a", 1, request_id="request-1", client_address="192.0.2.1")
    damaged = indexed(tmp_path / "a", 2, request_id="request-2", client_address="2001:db8::2")
    indexed(tmp_path / "a", 3, request_id="", client_address="192.0.2.1")
    (tmp_path / "a" / damaged.name).write_bytes(b"not read")
    return tmp_path


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (DecisionFilters(decision_id="id1"), ["id1"]),
        (DecisionFilters(request_id="request-1"), ["id1"]),
        (DecisionFilters(addresses=Cidr(parse_address("192.0.2.1"), 32)), ["id3", "id1"]),
        (DecisionFilters(addresses=Cidr(parse_address("192.0.2.1"), 32), request_id="request-1"), ["id1"]),
        (DecisionFilters(request_id="absent"), []),
    ],
)
def test_index__only_files_that_may_have_the_value_are_read(
    log: Path, filters: DecisionFilters, expected: list[str]
) -> None:
    """Each exact look-up skips the file that has no such value, whatever is wrong with it."""
    assert found(log, filters) == expected


def test_index__an_address_is_read_in_its_row_groups(tmp_path: Path) -> None:
    """Every row of the address is found, wherever it is in a file of several row groups."""
    folder, count = tmp_path / "a", 3 * ROW_GROUP_ROWS
    folder.mkdir()
    rows = Segment(Contents.ROWS, 1, 1, START_US, START_US + count)
    address = f"CASE WHEN i IN (5, {count - 1}) THEN '192.0.2.1' ELSE '10.0.0.' || (i % 250) END"
    columns = {
        "time": f"make_timestamp({START_US} + i)", "decision_id": "'id' || i", "client_address": address
    }  # fmt: skip
    selected = ", ".join(
        f"{columns.get(column.name, 'NULL')}::{column.sql_type} AS {column.name}" for column in COLUMNS
    )
    with connect(folder) as connection:
        write_query(folder, rows, f"SELECT {selected} FROM range({count}) AS given(i)", connection)  # noqa: S608
        write_index(folder, rows, connection)
        file = LogFile(rows, folder / rows.name, folder / rows._replace(contents=Contents.IDS).name)
        assert sorted(may_have(connection, [file], "192.0.2.1")[0].row_groups) == [0, 2]
    assert found(tmp_path, DecisionFilters(addresses=Cidr(parse_address("192.0.2.1"), 32))) == [
        f"id{count - 1}",
        "id5",
    ]


def test_index__of_another_hash_function_is_ignored(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an update of DuckDB that changes its hashes, files are read as if they had no index."""
    damaged = next(segment for segment in segments_of(log / "a") if segment.first == 2)
    for contents in Contents:
        (log / "a" / damaged._replace(contents=contents).name).unlink(missing_ok=True)
    monkeypatch.setattr(id_index, "_hash", lambda value: f"(hash({value} || 'x') >> 32)::UINTEGER")
    assert found(log, DecisionFilters(request_id="request-1")) == ["id1"]


def test_index__of_merged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large merged file gets an index, which goes with its rows; a small one gets none."""
    folder = tmp_path / "a"
    for number in range(1, FACTOR + 1):
        write_segment(folder, number, [decision_row(number, f"id{number}", request_id=f"request-{number}")])
    monkeypatch.setattr(upkeep, "INDEXED_BYTES_MIN", 1)
    with connect(folder) as connection:
        assert merge(folder, connection)
        by_contents = {segment.contents: segment for segment in segments_of(folder)}
        assert set(by_contents) == set(Contents)
        rows, index = by_contents[Contents.ROWS], by_contents[Contents.IDS]
        assert index == rows._replace(contents=Contents.IDS)
        sizes = [(folder / segment.name).stat().st_size for segment in (rows, index)]
        assert expire(folder, rows.to_us, 7, 1 << 40, connection) == sum(sizes)
        assert found(tmp_path, DecisionFilters(request_id="request-7")) == ["id7"]
        (folder / rows.name).rename(folder / "moved")
        assert found(tmp_path, DecisionFilters(request_id="request-7")) == []
        (folder / "moved").rename(folder / rows.name)
        expire(folder, rows.to_us + 8 * DAY_US, 7, 1 << 40, connection)
    assert segments_of(folder) == [by_contents[Contents.ROLLUP]]


def test_index__without_its_rows_is_removed(tmp_path: Path) -> None:
    """A merge that was killed between index and rows leaves nothing behind."""
    segment = indexed(tmp_path, 1)
    (tmp_path / segment.name).unlink()
    with connect(tmp_path) as connection:
        expire(tmp_path, segment.to_us, 7, 1 << 40, connection)
    assert segments_of(tmp_path) == []


def test_index__has_no_erased_id(tmp_path: Path) -> None:
    """An erasure writes the index again."""
    segment = indexed(tmp_path / "a", 1, request_id="request-1")
    path = tmp_path / "a" / segment._replace(contents=Contents.IDS).name
    before = path.read_bytes()
    erase([tmp_path / "a"], DecisionFilters(integration="acme"), DEADLINE_S)
    assert path.read_bytes() != before
    with connect(tmp_path) as connection:
        assert connection.execute(f"SELECT count(*) FROM {quoted(path)}").fetchall() == [(1,)]  # noqa: S608

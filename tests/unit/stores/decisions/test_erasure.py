"""Erasing rows of a decision log: from every file and every rollup, and beside a compaction."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from sidecar.domain.cidr import parse_cidr
from sidecar.stores.decisions.erasure import Erased, erase
from sidecar.stores.decisions.filters import DecisionFilters
from sidecar.stores.decisions.parquet import write_query
from sidecar.stores.decisions.queries import DecisionLogError
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.decisions.rewriting import rewriting
from sidecar.stores.decisions.rollup import rollup_query
from sidecar.stores.decisions.segments import Contents, Segment
from tests.decision_log import decision_row, write_segment

DEADLINE_S = 60.0


@pytest.fixture
def log(tmp_path: Path) -> DecisionReader:
    """Three files of two sidecars; the first one's rows have a rollup, and so have rows that are gone."""
    first = write_segment(
        tmp_path / "a",
        1,
        [
            decision_row(1, "id1", client_address="192.0.2.1"),
            decision_row(2, "id2", client_address="192.0.2.2"),
            decision_row(3, "id3", integration="bolt", client_address="2001:db8::1"),
        ],
    )
    write_segment(tmp_path / "a", 2, [decision_row(4, "id4", integration="bolt")])
    write_segment(
        tmp_path / "b", 1, [decision_row(5, "id5"), decision_row(6, "id6", client_address="10.0.0.1")]
    )
    for folder, rollup in (("a", first), ("b", first._replace(first=7, last=7))):
        query = rollup_query(f"read_parquet('{tmp_path / 'a' / first.name}')")
        write_query(tmp_path / folder, rollup._replace(contents=Contents.ROLLUP), query)
    return DecisionReader(tmp_path)


def ids(log: DecisionReader) -> list[object]:
    """The ids of all rows, in order."""
    return [row[0] for row in log.sql("SELECT decision_id FROM decisions ORDER BY 1", [], DEADLINE_S)]


def counted(log: DecisionReader, sidecar: str) -> dict[tuple[str, str], int]:
    """The counts of *sidecar*'s rollup, by integration and address."""
    (path,) = (log.folder / sidecar).glob("rollup-*")
    sql = f"SELECT integration, key, sum(count) FROM '{path}' WHERE kind = 'address' GROUP BY ALL"  # noqa: S608
    return {(row[0], row[1]): int(row[2]) for row in duckdb.execute(sql).fetchall()}


def test_erase__an_integration(log: DecisionReader) -> None:
    """No row and no count of the integration is left, and nothing else is gone."""
    filters = DecisionFilters(integration="bolt")
    assert erase(log.folders(), filters, DEADLINE_S) == Erased(rows=2, files=2)
    assert ids(log) == ["id1", "id2", "id5", "id6"]
    assert counted(log, "a") == counted(log, "b") == {("acme", "192.0.2.0/24"): 2}
    assert erase(log.folders(), filters, DEADLINE_S) == Erased(0, 0)


def test_erase__addresses(log: DecisionReader) -> None:
    """A rollup is exact while its rows exist; without them it loses the whole network of the address."""
    assert erase(log.folders(), DecisionFilters(addresses=parse_cidr("192.0.2.1")), DEADLINE_S) == Erased(
        3, 3
    )
    assert ids(log) == ["id2", "id3", "id6"]
    assert counted(log, "a") == {("acme", "192.0.2.0/24"): 1, ("bolt", "2001:db8::/64"): 1}
    assert counted(log, "b") == {("bolt", "2001:db8::/64"): 1}


def test_erase__files_that_compaction_left(log: DecisionReader) -> None:
    """A file that a compacted one replaced is removed: its rows would stay on the disk."""
    (old, other) = sorted((log.folder / "a").glob("rows-*"))
    both = Segment(Contents.ROWS, 1, 2, 0, 2_000_000_000_000_000)
    write_query(log.folder / "a", both, f"SELECT * FROM read_parquet(['{old}', '{other}'])")  # noqa: S608
    erase(log.folders(), DecisionFilters(integration="bolt"), DEADLINE_S)
    assert [path.name for path in (log.folder / "a").glob("rows-*")] == [both.name]
    assert ids(log) == ["id1", "id2", "id5", "id6"]


def test_erase__waits_for_a_compaction(log: DecisionReader) -> None:
    """While another process rewrites files nothing is erased, and the error says so."""
    with rewriting(log.folder / "a", DEADLINE_S), pytest.raises(DecisionLogError, match="try again later"):
        erase(log.folders(), DecisionFilters(integration="bolt"), 0.1)
    assert len(ids(log)) == 6


@pytest.mark.parametrize(
    "filters",
    [
        DecisionFilters(),
        DecisionFilters(integration="acme", reason="ok"),
        DecisionFilters(integration="acme", addresses=parse_cidr("192.0.2.1")),
    ],
)
def test_erase__refuses_other_filters(log: DecisionReader, filters: DecisionFilters) -> None:
    """A filter that an erasure does not know must not erase more than it says."""
    with pytest.raises(ValueError, match="one integration or"):
        erase(log.folders(), filters, DEADLINE_S)

"""Reading a decision log: filters, pages in order, spans, files that vanish, and bounds."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.cidr import Cidr, parse_address
from sidecar.domain.decision_rows import COLUMN_NAMES
from sidecar.stores.decisions import pages
from sidecar.stores.decisions import reader as reader_module
from sidecar.stores.decisions.erasure import erase
from sidecar.stores.decisions.filters import DecisionFilters, address_condition
from sidecar.stores.decisions.missing import MissingSpan, add_missing
from sidecar.stores.decisions.pages import Cursor, parse_cursor
from sidecar.stores.decisions.queries import (
    DecisionLogError,
    DecisionLogTimeoutError,
)
from sidecar.stores.decisions.reader import DecisionReader
from tests.decision_log import SECOND_US, START_US, decision_row, write_segment

DEADLINE_S = 60.0


def found_ids(log: DecisionReader, filters: DecisionFilters, limit: int = 100) -> list[str]:
    """The ids of the rows that *filters* admit, in the order of the answer."""
    page = log.page(filters, limit, DEADLINE_S)
    assert page.next_after is None
    return [str(decision.row[1]) for decision in page.decisions]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> DecisionReader:
    """The log of two sidecars, whose files overlap in time."""
    folder = tmp_path_factory.mktemp("log")
    write_segment(
        folder / "a",
        1,
        [
            decision_row(1, "id1", request_id="request-1"),
            decision_row(
                4, "id4", verdict="DENY_403", reason="ip_not_allowed", client_address="198.51.100.7"
            ),
            decision_row(6, "id6", integration="bolt", credential="key2", path="/invoices/'; DROP"),
        ],
    )
    write_segment(folder / "a", 2, [decision_row(7, "id7", method="POST", scope="orders:write")])
    write_segment(
        folder / "b",
        1,
        [
            decision_row(2, "id2", client_address="2001:db8::7"),
            decision_row(7, "id8", verdict="DENY_429", reason="rate_limited"),
        ],
    )
    return DecisionReader(folder)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (DecisionFilters(), "id8 id7 id6 id4 id2 id1"),
        (DecisionFilters(integration="bolt"), "id6"),
        (DecisionFilters(credential="key1", method="GET"), "id8 id4 id2 id1"),
        (DecisionFilters(verdict="DENY_403"), "id4"),
        (DecisionFilters(reason="rate_limited"), "id8"),
        (DecisionFilters(scope="orders:write"), "id7"),
        (DecisionFilters(request_id="request-1"), "id1"),
        (DecisionFilters(decision_id="id2"), "id2"),
        (DecisionFilters(path_prefix="/invoices/'"), "id6"),
        (DecisionFilters(path_prefix="/inv%"), ""),
        (DecisionFilters(from_us=START_US + 2 * SECOND_US, to_us=START_US + 6 * SECOND_US), "id4 id2"),
        (DecisionFilters(addresses=Cidr(parse_address("198.51.100.0"), 24)), "id4"),
        (DecisionFilters(addresses=Cidr(parse_address("2001:db8::"), 32)), "id2"),
        (DecisionFilters(addresses=Cidr(parse_address("192.0.2.1"), 32), verdict="DENY_429"), "id8"),
        (DecisionFilters(integration="' OR ''='"), ""),
    ],
)
def test_page__admits_what_the_filters_say(
    log: DecisionReader, filters: DecisionFilters, expected: str
) -> None:
    """Filters apply together, to the rows of all sidecars, newest first; texts are values, never SQL."""
    assert found_ids(log, filters) == expected.split()


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_page__continues_where_the_last_one_ended(log: DecisionReader, limit: int) -> None:
    """All pages together have each row once, in order, also where two rows have one time."""
    ids, after = [], None
    while True:
        page = log.page(DecisionFilters(), limit, DEADLINE_S, after)
        ids += [decision.row[1] for decision in page.decisions]
        if page.next_after is None:
            break
        after = parse_cursor(str(page.next_after))
    assert ids == ["id8", "id7", "id6", "id4", "id2", "id1"]


def test_page__says_which_sidecar_wrote_a_row(log: DecisionReader) -> None:
    """A row comes back as it was written, with its sidecar's name."""
    (decision,) = log.page(DecisionFilters(decision_id="id8"), 1, DEADLINE_S).decisions
    assert decision.sidecar == "b"
    assert decision.row == decision_row(7, "id8", verdict="DENY_429", reason="rate_limited")
    assert [folder.name for folder in log.folders()] == ["a", "b"]


def test_sql__reads_parameters(log: DecisionReader) -> None:
    """A query of its own sees all columns and the sidecar."""
    query = "SELECT sidecar, count(*) FROM decisions WHERE reason = ? GROUP BY ALL ORDER BY ALL"
    assert log.sql(query, ["ok"], DEADLINE_S) == [("a", 3), ("b", 1)]
    assert log.sql(query, ["ok"], DEADLINE_S, from_us=START_US + 60 * SECOND_US) == []
    columns = [row[0] for row in log.sql("DESCRIBE decisions", [], DEADLINE_S)]
    assert columns == [*COLUMN_NAMES, "sidecar"]
    nothing = log.sql("DESCRIBE decisions", [], DEADLINE_S, from_us=START_US + 60 * SECOND_US)
    assert [row[0] for row in nothing] == columns


def test_reader__opens_only_files_of_the_span(tmp_path: Path) -> None:
    """A file whose name says that it is older is not opened, and neither is one that was replaced."""
    folder = tmp_path / "a"
    old = write_segment(folder, 1, [decision_row(1, "id1")])
    write_segment(folder, 2, [decision_row(90, "id2")])
    (folder / old.name).write_bytes(b"not Parquet")
    log = DecisionReader(tmp_path)
    assert found_ids(log, DecisionFilters(from_us=START_US + 60 * SECOND_US)) == ["id2"]
    with pytest.raises(DecisionLogError, match=old.name):
        log.page(DecisionFilters(), 10, DEADLINE_S)
    merged = old._replace(last=2, to_us=START_US + 90 * SECOND_US)
    written = write_segment(tmp_path / "a", 9, [decision_row(9, "both")])
    (folder / written.name).rename(folder / merged.name)
    assert found_ids(log, DecisionFilters()) == ["both"]


def test_reader__empty_and_missing_folders(tmp_path: Path) -> None:
    """A log without rows is empty; a folder that does not exist is an error that names it."""
    (tmp_path / "a").mkdir()
    assert DecisionReader(tmp_path).page(DecisionFilters(), 10, DEADLINE_S).decisions == []
    with pytest.raises(DecisionLogError, match="absent"):
        DecisionReader(tmp_path / "absent").page(DecisionFilters(), 10, DEADLINE_S)


def test_reader__lists_again_when_a_file_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that compaction removes between listing and reading costs a second listing, not an answer."""
    folder = tmp_path / "a"
    first, second = (write_segment(folder, n, [decision_row(n, f"id{n}")]) for n in (1, 2))
    list_segments = reader_module.segments_of
    listings = []

    def removed_after_listing(path: Path) -> Any:
        listed = list_segments(path)
        listings.append(listed)
        (folder / first.name).unlink(missing_ok=True)
        return listed

    monkeypatch.setattr(reader_module, "segments_of", removed_after_listing)
    assert found_ids(DecisionReader(tmp_path), DecisionFilters()) == ["id2"]
    assert listings == [[first, second], [second]]


def test_reader__gives_up_when_files_vanish_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of listings is bounded."""
    segment = write_segment(tmp_path / "a", 1, [decision_row(1, "id1")])
    (tmp_path / "a" / segment.name).unlink()
    monkeypatch.setattr(reader_module, "segments_of", lambda path: [segment])
    with pytest.raises(DecisionLogError, match=segment.name):
        DecisionReader(tmp_path).page(DecisionFilters(), 10, DEADLINE_S)


def test_page__is_right_while_an_erasure_replaces_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a merge has moved a row meanwhile, the reader searches again and shows no other row instead."""
    rows = [decision_row(second, f"id{second}", client_address=f"192.0.2.{second}") for second in (1, 2, 3)]
    write_segment(tmp_path / "a", 1, rows)
    log = DecisionReader(tmp_path)
    read = pages.NewestRows.page
    searches = []

    def page(found: pages.NewestRows, is_whole: bool, ends_at: float) -> pages.FoundRows:
        searches.append(found)
        erase(log.folders(), DecisionFilters(addresses=Cidr(parse_address("192.0.2.2"), 32)), DEADLINE_S)
        return read(found, is_whole, ends_at)

    monkeypatch.setattr(pages.NewestRows, "page", page)
    assert found_ids(log, DecisionFilters()) == ["id3", "id1"]
    assert len(searches) == 2


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_page__rows_of_one_time_are_ordered_by_their_ids(tmp_path: Path, limit: int) -> None:
    """However many rows and files have one time, pages have each of them once, in order."""
    expected = [f"id{number:02}" for number in range(20)]
    for file in range(4):
        rows = [decision_row(1, id, integration=f"i{id[-1]}") for id in expected[file::4]]
        write_segment(tmp_path / f"host-{file}", 1, rows)
    log = DecisionReader(tmp_path)
    ids: list[object] = []
    page = log.page(DecisionFilters(), limit, DEADLINE_S)
    while page.next_after is not None:
        ids += [decision.row[1] for decision in page.decisions]
        page = log.page(DecisionFilters(), limit, DEADLINE_S, page.next_after)
    ids += [decision.row[1] for decision in page.decisions]
    assert ids == expected[::-1]


def test_sql__ends_at_its_deadline(log: DecisionReader) -> None:
    """A query that would take hours is interrupted."""
    endless = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range + b.range = -1"
    with pytest.raises(DecisionLogTimeoutError):
        log.sql(endless, [], 0.1)


def test_sql__memory_is_bounded(log: DecisionReader) -> None:
    """A query that needs more memory than it may use fails with a remedy, and writes no file."""
    small = DecisionReader(log.folder, memory_mib_max=16)
    with pytest.raises(DecisionLogError, match="shorter span"):
        small.sql("SELECT list(range) FROM range(100000000)", [], DEADLINE_S)


def test_page__is_partial_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the deadline a page has what was searched for certain, and continues from there."""
    write_segment(tmp_path / "a", 1, [decision_row(1, "id1")])
    write_segment(tmp_path / "a", 2, [decision_row(5, "id5")])
    write_segment(tmp_path / "b", 1, [decision_row(5, "id6"), decision_row(9, "id9")])
    log = DecisionReader(tmp_path)
    deadlines = 0

    def expired(*arguments: object) -> Any:
        nonlocal deadlines
        deadlines += 1
        if deadlines == 2:
            raise DecisionLogTimeoutError
        return deadline(*arguments)

    deadline = pages.query_deadline
    monkeypatch.setattr(pages, "query_deadline", expired)
    page = log.page(DecisionFilters(), 10, DEADLINE_S)
    assert [decision.row[1] for decision in page.decisions] == ["id9"]
    assert page.next_after == Cursor(START_US + 5 * SECOND_US + 1)
    rest = log.page(DecisionFilters(), 10, DEADLINE_S, page.next_after)
    assert [decision.row[1] for decision in rest.decisions] == ["id6", "id5", "id1"]


def test_missing__has_the_spans_of_all_sidecars(tmp_path: Path) -> None:
    """Spans come back oldest first, with their sidecar, if they touch the asked time."""
    first, second = (
        MissingSpan(5, 9, 0, 1, 0, "disk", "b"),
        MissingSpan(7, 20, -1, -1, -1, "writer_ended", "a"),
    )
    for span in (first, second):
        (tmp_path / span.sidecar).mkdir()
        add_missing(tmp_path / span.sidecar, [span])
    log = DecisionReader(tmp_path)
    assert log.missing() == [first, second]
    assert log.missing(10, 30) == [second]
    assert log.missing(21, 30) == []


ADDRESSES = [
    "::", "::1", "2001:db8::", "2001:db8::1", "2001:db8:0:1::", "2001:db8:0:1:2:3:4:5", "1:2:3:4:5:6:7:8",
    "fe80::1:0:0:1", "0:1::", "10.1.2.3", "10.1.20.3", "10.128.0.1", "11.0.0.1", "192.168.31.255",
    "255.255.255.255", "",
]  # fmt: skip


@given(
    st.one_of(
        st.tuples(st.sampled_from([text for text in ADDRESSES if text]), st.integers(0, 128)),
        st.tuples(st.ip_addresses().map(str), st.integers(0, 128)),
    )
)
def test_address_condition__agrees_with_the_standard_library(block: tuple[str, int]) -> None:
    """A block admits the addresses that the module `ipaddress` says are in it."""
    address, length = block
    length = min(length, ip_address(address).max_prefixlen)
    network = ip_network(f"{address}/{length}", strict=False)
    if network.version == 6 and network.network_address.ipv4_mapped:  # type: ignore[union-attr]
        return
    condition = address_condition(Cidr(network.network_address.packed, length))
    values = ", ".join(f"('{text}')" for text in ADDRESSES)
    sql = f"SELECT client_address FROM (VALUES {values}) AS given(client_address) WHERE {condition.sql}"  # noqa: S608
    found = [row[0] for row in duckdb.execute(sql, condition.values).fetchall()]
    assert found == [text for text in ADDRESSES if text and ip_address(text) in network]


@pytest.mark.parametrize("text", ["", "1", "x-1", "1-" + "a" * 129, "9" * 18 + "-", "1-a'b"])
def test_cursor__refuses_others(text: str) -> None:
    """A text that is no cursor is refused."""
    with pytest.raises(ValueError, match="invalid cursor"):
        parse_cursor(text)

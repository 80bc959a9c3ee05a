"""Lines of the decision log: whatever clients send, each value stays in its column of its row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from duckdb import DuckDBPyConnection
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.domain.decision_rows import COLUMN_NAMES, COLUMNS, DecisionRow, printable
from sidecar.domain.path_masks import PathMasks
from sidecar.stores.decisions.lines import decision_rows, masked
from sidecar.stores.decisions.parquet import connect, write_lines
from sidecar.stores.decisions.segments import Contents, Segment
from tests.decision_log import START_US, decision_row, lines_of

SEGMENT = Segment(Contents.ROWS, 1, 1, START_US, START_US)
CLIENT_COLUMNS = ("request_id", "trace_id", "method", "path")

odd = st.sampled_from("\x1f\n\r\0\x1b\x85\u2028\ud800\U0001f600\"',;|?\\ü%")
texts = st.text(st.one_of(odd, st.characters(), st.sampled_from("ab/")), max_size=12)
rows = st.lists(
    st.builds(
        lambda number, values, remaining: decision_row(number, f"id{number}", remaining=remaining, **values),
        st.integers(0, 1_000),
        st.fixed_dictionaries(dict.fromkeys(CLIENT_COLUMNS, texts)),
        st.integers(-1, 2**31 - 1),
    ),
    min_size=1,
    max_size=20,
)


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBPyConnection]:
    """A connection that writes files: opening one for each example would take longer than all else."""
    with connect(tmp_path_factory.mktemp("log")) as connection:
        yield connection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the file."""
    return tmp_path_factory.mktemp("log")


def expected(row: DecisionRow) -> DecisionRow:
    """The row as it is recorded: no unprintable characters, no query."""
    values = dict(zip(COLUMN_NAMES, row, strict=True))
    values |= {name: printable(str(values[name])) for name in CLIENT_COLUMNS}
    values["path"] = str(values["path"]).partition("?")[0]
    return tuple(values.values())


@settings(max_examples=30, deadline=None)
@given(rows)
@example([decision_row(1, "id1", path="/a\ud800b")])
def test_lines__each_value_stays_in_its_column(
    connection: DuckDBPyConnection, folder: Path, given_rows: list[DecisionRow]
) -> None:
    """Delimiters, line ends, quotes and lone surrogates in requests: the same in memory, and in the file."""
    wanted = [expected(row) for row in given_rows]
    lines = lines_of(given_rows)
    assert [row for part in lines for row in decision_rows(part)] == wanted
    masks = PathMasks(["/hidden/*"])
    place = COLUMN_NAMES.index("path")
    assert [row[place] for part in lines for row in decision_rows(masked(part, masks))] == [
        masks.apply(str(row[place])) for row in wanted
    ]
    write_lines(folder, SEGMENT, lines, connection)
    columns = ", ".join(f"epoch_us({c.name})" if c.is_time else c.name for c in COLUMNS)
    query = f"SELECT {columns} FROM '{folder / SEGMENT.name}'"  # noqa: S608
    assert connection.execute(query).fetchall() == wanted

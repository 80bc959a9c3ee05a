"""docs/operate/decision-log.md has the columns of the log, also in the definitions for other engines."""

from __future__ import annotations

import re

from sidecar.domain.decision_rows import COLUMNS
from tests.house.source import text_of

PAGE = text_of("docs/operate/decision-log.md")


def test_page__has_every_column_with_its_meaning() -> None:
    """The table is the one in the code."""
    table = PAGE.split("## The columns")[1].split("\n\n")[1].splitlines()[2:]
    assert table == [f"| `{column.name}` | {column.sql_type} | {column.meaning} |" for column in COLUMNS]


def test_page__definitions_for_other_engines_have_every_column() -> None:
    """ClickHouse and Trino get the same columns in the same order."""
    definitions = re.findall(r"CREATE TABLE decisions \(\n(.*?)\n\)", PAGE, re.DOTALL)
    names = [[line.split()[0] for line in definition.splitlines()] for definition in definitions]
    assert names == [[column.name for column in COLUMNS]] * 2

"""docs/develop/conformance.md shows the table of differences, row for row, and the figures of the suite."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from .differences import LIMITS_NOT_KEPT, OTHER_RULES, REFERENCE_DIFFERENCES, Difference
from .rules_grpc import GRPC_RULES
from .rules_http2 import HTTP2_RULES
from .test_h2spec import CASES, KNOWN_FAILURES

PAGE = Path(__file__).parents[3] / "docs" / "develop" / "conformance.md"

EXPECTED = {**{rule.name: rule.expected for rule in (*HTTP2_RULES, *GRPC_RULES)}, **OTHER_RULES}


def table_row(row: Difference) -> str:
    """A difference as a line of the page: what the rules say and for which, what happens instead, why."""
    names = defaultdict(list)
    for name in row.names:
        names[EXPECTED[name]].append(f"`{name}`")
    rules = "; ".join(f"{says}: {' '.join(those)}" for says, those in names.items())
    return f"| {rules} | {' *or* '.join(row.observed)} | {row.why} |"


def lines_of(page: Path, start: str) -> list[str]:
    """The rows of the table on *page* whose header begins with *start*."""
    lines = page.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {start} |"))
    rows = lines[first + 2 :]
    return rows[: next(number for number, line in enumerate([*rows, ""]) if not line.startswith("|"))]


def test_page__shows_every_difference() -> None:
    """The page's table of differences is the suite's, in the same words and order."""
    assert lines_of(PAGE, "the rule says") == [table_row(row) for row in REFERENCE_DIFFERENCES]


def test_page__shows_every_limit_not_kept() -> None:
    """The page lists the limits that the reference transport cannot keep."""
    assert lines_of(PAGE, "limit") == [f"| `{name}` | {why} |" for name, why in LIMITS_NOT_KEPT.items()]


def test_page__figures() -> None:
    """The page's number of rules and h2spec's score are those of the suite."""
    text = PAGE.read_text()
    assert f"{len(HTTP2_RULES)} rules of HTTP/2 and {len(GRPC_RULES)} of gRPC" in text
    assert f"{CASES - len(KNOWN_FAILURES)} of {CASES}" in text
    for name in KNOWN_FAILURES:
        assert name.split(" ", 1)[1] in text, name

"""Writes decision logs for tests: real files, from rows of which a test states only what matters to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sidecar.domain.decision_rows import COLUMN_NAMES, COLUMNS, DecisionRow, joined
from sidecar.stores.decisions.lines import END, NUMBERS, PIECES, Lines, pack_lines
from sidecar.stores.decisions.parquet import write_lines
from sidecar.stores.decisions.segments import Contents, Segment

START_US = 1_764_000_000_000_000
"""2025-11-24 16:00 UTC; the rows of tests begin here."""
SECOND_US = 1_000_000

_USUAL: dict[str, str | int] = {
    "integration": "acme",
    "credential": "key1",
    "verdict": "ALLOW",
    "reason": "ok",
    "method": "GET",
    "path": "/orders/1",
    "scope": "orders:read",
    "client_address": "192.0.2.1",
    "route": "/orders/{id}",
    "dialect": "ext_authz",
}


def decision_row(second: float, decision_id: str, **values: str | int) -> DecisionRow:
    """A row, *second* after `START_US`; *values* replace the usual ones by column."""
    given = {**_USUAL, "time": START_US + int(second * SECOND_US), "decision_id": decision_id, **values}
    return tuple(given.get(column.name, "" if column.sql_type == "VARCHAR" else 0) for column in COLUMNS)


def lines_of(rows: Iterable[DecisionRow]) -> list[Lines]:
    """Pack *rows* as a worker does."""
    texts: list[str] = []
    numbers: list[int] = []
    for row in rows:
        values = dict(zip(COLUMN_NAMES, row, strict=True))
        texts += (
            str(values[piece[0]]) if len(piece) == 1 else joined(*(values[name] for name in piece))
            for piece in PIECES
        )
        texts[-1] += END
        factors = {"time": 1_000, "latency_us": 1_000}  # both are ns there
        numbers += (int(values[name]) * factors.get(name, 1) for name in NUMBERS)
    return list(pack_lines(texts, numbers))


def write_rows(folder: Path, number: int, rows: Iterable[DecisionRow]) -> Segment:
    """Write *rows* to the existing *folder* as batch *number*."""
    lines = lines_of(rows)
    starts_us, ends_us = zip(*(part.span_us for part in lines), strict=True)
    segment = Segment(Contents.ROWS, number, number, min(starts_us), max(ends_us))
    write_lines(folder, segment, lines)
    return segment


def write_segment(folder: Path, number: int, rows: Sequence[DecisionRow]) -> Segment:
    """Write *rows* as batch *number* of the sidecar whose folder is *folder*, which may not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_rows(folder, number, rows)

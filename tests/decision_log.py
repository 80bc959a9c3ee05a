"""Writes decision logs for tests: real files, from rows of which a test states only what matters to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidecar.domain.decision_rows import COLUMNS, DecisionRow
from sidecar.stores.decisions.parquet import write_rows
from sidecar.stores.decisions.segments import Segment

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


def write_segment(folder: Path, number: int, rows: Sequence[DecisionRow]) -> Segment:
    """Write *rows* as batch *number* of the sidecar whose folder is *folder*, which may not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_rows(folder, number, rows)

"""Verification of the SQLite file's derived data and schema."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import cache

from sidecar.domain.audit import AuditEntry
from sidecar.stores.registry.derived import (
    INTEGRATION,
    DerivedFields,
    DerivedProblem,
    claim_problem,
    issued_ids,
    orphan_problem,
    record_problems,
)
from sidecar.stores.registry.sqlite.schema import MIGRATIONS


def integration_problems(database: sqlite3.Connection, integration_id: str, stored: str) -> tuple[str, ...]:
    """The differences between the record *stored* of an integration and its derived data."""
    status, generation, search = database.execute(
        "SELECT status, generation, search FROM integrations WHERE id = ?", (integration_id,)
    ).fetchone()
    secrets = database.execute("SELECT id FROM webhook_secrets WHERE integration_id = ?", (integration_id,))
    derived = DerivedFields(status, generation, search, [secret[0] for secret in secrets])
    return tuple(record_problems(stored, derived))


def entry_problems(database: sqlite3.Connection, entries: Sequence[AuditEntry]) -> tuple[DerivedProblem, ...]:
    """Claims that differ from what *entries* issued."""
    problems = []
    for entry in entries:
        kind, _, name = entry.subject.partition(":")
        for issued in issued_ids(entry):
            if kind == INTEGRATION:
                found = database.execute(
                    "SELECT integration_id, generation FROM credential_ids WHERE id = ?", (issued,)
                ).fetchone()
                wanted: tuple[object, ...] = (name, entry.generation)
            else:
                found = database.execute(
                    "SELECT administrator_id FROM token_ids WHERE id = ?", (issued,)
                ).fetchone()
                wanted = (name,)
            if found != wanted:
                text = None if found is None else " in generation ".join(map(str, found))
                problems.append(claim_problem(entry, issued, text))
    return tuple(problems)


def file_problems(database: sqlite3.Connection) -> tuple[DerivedProblem, ...]:
    """Tables, indexes and triggers that are missing or altered, and claims without an owner."""
    found = _schema(database)
    problems = [
        DerivedProblem(0, f"the {kind} {name} is {'missing' if (kind, name) not in found else 'altered'}")
        for (kind, name), statement in _expected_schema().items()
        if found.get((kind, name)) != statement
    ]
    unknown = sorted(found.keys() - _expected_schema().keys())
    problems += [DerivedProblem(0, f"the {kind} {name} is not part of the schema") for kind, name in unknown]
    orphans = database.execute(
        "SELECT id FROM credential_ids WHERE NOT EXISTS (SELECT 1 FROM integrations AS owner"
        " WHERE owner.id = integration_id AND owner.generation >= credential_ids.generation)"
        " UNION ALL SELECT id FROM token_ids"
        " WHERE NOT EXISTS (SELECT 1 FROM administrators AS owner WHERE owner.id = administrator_id)"
        " LIMIT 100"
    ).fetchall()
    return (*problems, *(orphan_problem(row[0]) for row in orphans))


@cache
def _expected_schema() -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(":memory:")) as database:
        for statements in MIGRATIONS:
            for statement in statements:
                database.execute(statement)
        return _schema(database)


def _schema(database: sqlite3.Connection) -> dict[tuple[str, str], str]:
    rows = database.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
    )
    return {(kind, name): sql for kind, name, sql in rows}

"""
Verification of derived data: values that a store computes from records and audit entries.

Records and chains are authoritative. Derived data only helps to find them: status and search text,
generations, claims of ids, lists of ids, indexes of the log. A change of derived data changes no record, but
can hide an integration from lists or allow an id to be issued twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from sidecar.domain.audit import AuditEntry
from sidecar.domain.integrations import DETAILS, Integration
from sidecar.domain.records import from_stored

DELETED = "deleted"
INTEGRATION, ADMINISTRATOR = "integration", "administrator"


class DerivedProblem(NamedTuple):
    """Derived data that is wrong, and the entry `sequence` of the chain that it derives from."""

    sequence: int
    message: str


class DerivedFields(NamedTuple):
    """The data derived from the record of an integration; None = missing."""

    status: str | None
    generation: int | None
    search: str | None
    secrets: Iterable[str]


def record_problems(stored: str, derived: DerivedFields) -> list[str]:
    """What is wrong in *derived* by the record *stored*; an unreadable record fails its digest instead."""
    try:
        record = from_stored(json.loads(stored))
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    problems = []
    if derived.status not in (record.status.value, DELETED):  # only the audit log records a deletion
        problems.append(f"its stored status is {derived.status!r}, the record says {record.status.value!r}")
    if derived.generation != record.generation:
        problems.append(f"its stored generation is {derived.generation}, the record says {record.generation}")
    if derived.search != search_text(record):
        problems.append("its search text differs from the record")
    named = {secret.id for secret in record.webhook_secrets}
    problems += (
        f"webhook secret {name} is {'missing' if name in named else 'left over'}"
        for name in sorted(named.symmetric_difference(derived.secrets))
    )
    return problems


def issued_ids(entry: AuditEntry) -> tuple[str, ...]:
    """The ids of credentials (of an integration) or tokens (of an administrator) that *entry* issued."""
    members = "credentials" if entry.subject.startswith(INTEGRATION) else "tokens"
    before, after = entry.before.get(members), entry.after.get(members)
    if not isinstance(after, dict):
        return ()
    known = before if isinstance(before, dict) else {}
    return tuple(name for name in after if name not in known)


def claim_problem(entry: AuditEntry, issued_id: str, found: str | None) -> DerivedProblem:
    """The problem that the claim of an id that *entry* issued is *found*, None = missing."""
    state = "is missing, so the id could be issued again" if found is None else f"says {found}"
    return DerivedProblem(entry.sequence, f"the claim of id {issued_id} by {entry.subject} {state}")


def orphan_problem(issued_id: str) -> DerivedProblem:
    """The problem that the claim of an id has no owner."""
    return DerivedProblem(0, f"the claim of id {issued_id} has no owner")


def search_text(record: Integration) -> str:
    """The text that searches match: the fields of *record* in lower case, one per line."""
    parts = [record.id, record.name, *(getattr(record, name) for name in DETAILS)]
    return "\n".join([*parts, *(credential.id for credential in record.credentials)]).casefold()

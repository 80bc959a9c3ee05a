"""
What a store derives from records and audit entries, recomputed: all that verification can compare.

Records and chains are the truth. Everything beside them only finds them again: status and text to search,
generations, claims of ids, lists of ids, indexes of the log. Whoever changes that changes no record, and
yet hides an integration from lists, or lets an id be issued twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from sidecar.domain.audit import AuditEntry
from sidecar.domain.integrations import Integration
from sidecar.domain.records import from_stored

DELETED = "deleted"
INTEGRATION, ADMINISTRATOR = "integration", "administrator"


class DerivedProblem(NamedTuple):
    """Something derived differs from what it is derived from: entry `sequence` of the chain, and how."""

    sequence: int
    message: str


class KeptBeside(NamedTuple):
    """What is kept beside the record of an integration; None = it is not there."""

    status: str | None
    generation: int | None
    search: str | None


def read_record(stored: str) -> Integration | None:
    """The record in *stored*; None = it cannot be read, which its digest shows."""
    try:
        return from_stored(json.loads(stored))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def beside_problems(record: Integration, kept: KeptBeside) -> tuple[str, ...]:
    """What is wrong in *kept* by *record*; whether it is deleted, only the log tells."""
    problems = []
    if kept.status not in (record.status.value, DELETED):
        problems.append(f"its status is kept as {kept.status!r}, the record says {record.status.value!r}")
    if kept.generation != record.generation:
        problems.append(f"its generation is kept as {kept.generation}, the record says {record.generation}")
    if kept.search != search_text(record):
        problems.append("the text that searches look through is another one")
    return tuple(problems)


def secret_problems(record: Integration, kept: Iterable[str]) -> list[str]:
    """Sealed webhook secrets that are missing, or kept beyond *record*."""
    named = {secret.id for secret in record.webhook_secrets}
    return [
        f"webhook secret {name} is {'missing' if name in named else 'left over'}"
        for name in sorted(named.symmetric_difference(kept))
    ]


def issued_ids(entry: AuditEntry) -> tuple[str, ...]:
    """The ids of credentials (of an integration) or tokens (of an administrator) that *entry* issued."""
    members = "credentials" if entry.subject.startswith(INTEGRATION) else "tokens"
    before, after = entry.before.get(members), entry.after.get(members)
    if not isinstance(after, dict):
        return ()
    known = before if isinstance(before, dict) else {}
    return tuple(name for name in after if name not in known)


def claim_problem(entry: AuditEntry, issued_id: str, kept: str | None) -> DerivedProblem:
    """The claim of an id that *entry* issued differs; *kept* is what is there."""
    found = "is missing, so the id could be issued again" if kept is None else f"says {kept}"
    return DerivedProblem(entry.sequence, f"the claim of id {issued_id} by {entry.subject} {found}")


def search_text(record: Integration) -> str:
    """What a search looks through: the fields of *record*, without case, one a line."""
    parts = [record.id, record.name, record.contact, record.owner, record.third_party_manager]
    return "\n".join([*parts, *(credential.id for credential in record.credentials)]).casefold()

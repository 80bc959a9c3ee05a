"""
Rebuilds an earlier version of a record from the audit log.

Each entry has the public fields that a change altered, before and after. Undoing the entries since a version,
the latest first, therefore gives the public form of that version; no copy of it is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.domain.audit import AuditEntry
from sidecar.domain.canonical import Json
from sidecar.domain.integrations import Integration
from sidecar.domain.records import describe, from_stored

_NO_DIGEST = "sha256:" + 64 * "0"


class HistoryError(ValueError):
    """The audit log does not lead back to the version."""


def version_of(record: Integration, generation: int, entries: Iterable[AuditEntry]) -> Integration:
    """
    Return *record* as it was at *generation*, without digests and webhook secrets.

    Args:
        record: the record now.
        generation: 1 ... the record's.
        entries: the changes since, the latest first; older ones may follow and are not read.

    Raises:
        HistoryError: entries are missing.
    """
    described: dict[str, Any] = describe(record)
    current = record.generation
    for entry in entries:
        if current <= generation:
            break
        if entry.generation != current:
            raise HistoryError(
                f"the audit log has no change of {record.id!r} to generation {current}, only to"
                f" {entry.generation}"
            )
        described = undone(described, entry.before, entry.after)
        current -= 1
    if current != generation:
        raise HistoryError(f"the changes of {record.id!r} lead back to generation {current} only")
    return _from_description(described, generation)


def undone(
    current: Mapping[str, Any], before: Mapping[str, Json], after: Mapping[str, Json]
) -> dict[str, Any]:
    """
    Return *current* before a change, whose differences `records.changed_fields` gave.

    >>> undone({"a": 2, "b": {"x": 1, "y": 2}, "c": 3}, {"a": 1, "b": {}}, {"a": 2, "b": {"y": 2}, "c": 3})
    {'a': 1, 'b': {'x': 1}}
    """
    result = dict(current)
    for name in [*before, *(name for name in after if name not in before)]:
        old, new, held = before.get(name), after.get(name), result.get(name)
        if name not in before:
            result.pop(name, None)
        elif isinstance(old, Mapping) and isinstance(new, Mapping) and isinstance(held, Mapping):
            result[name] = undone(held, old, new)
        else:
            result[name] = old
    return result


def _from_description(described: Mapping[str, Any], generation: int) -> Integration:
    """Return the record of a public form; credentials have no digest, so that no key matches them."""
    suspended = described["suspended_generation"]
    credentials = [
        {
            "id": id,
            "digest": _NO_DIGEST,
            "issued_at_us": credential["issued_at_us"],
            "expires_at_us": credential["expires_at_us"],
            "replaced_by": credential["replaced_by"],
            "issued_generation": 0 if credential["is_invalidated"] else suspended,
        }
        for id, credential in described["credentials"].items()
    ]
    stored = {name: value for name, value in described.items() if name != "single_person"}
    if stored["on_store_error"] is None:  # the stored form leaves out defaults
        del stored["on_store_error"]
    return from_stored(
        stored
        | {"generation": generation, "credentials": credentials, "webhook_secrets": [], "changed_at_us": 0}
    )

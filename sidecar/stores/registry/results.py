"""Serialization of results that are stored under idempotency keys, the same in every store."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sidecar.domain.accounts import parse_administrator, stored_administrator
from sidecar.domain.audit import AuditEntry, parse_entry
from sidecar.domain.canonical import Json, canonical_json
from sidecar.domain.changes import AdminCommitted, Committed
from sidecar.domain.lifecycle.outcome import Notice
from sidecar.domain.records import from_stored, to_stored


def stored_commit(committed: Committed) -> str:
    """Serialize *committed*, which contains no secret."""
    return canonical_json(
        {
            "record": to_stored(committed.record),
            "entry": _body_of(committed.entry),
            "notices": [[notice.code, notice.field, notice.message] for notice in committed.notices],
            "is_deleted": committed.is_deleted,
        }
    )


def replayed_commit(text: str) -> Committed:
    """Parse an earlier result, and mark it as a replay."""
    kept: dict[str, Any] = json.loads(text)
    committed = Committed(
        record=from_stored(kept["record"]),
        entry=_entry_of(kept["entry"]),
        notices=tuple(Notice(*notice) for notice in kept["notices"]),
        is_deleted=kept["is_deleted"],
    )
    return replace(committed, is_replay=True)


def stored_admin_commit(committed: AdminCommitted) -> str:
    """Serialize *committed*."""
    return canonical_json(
        {"account": stored_administrator(committed.administrator), "entry": _body_of(committed.entry)}
    )


def replayed_admin_commit(text: str) -> AdminCommitted:
    """Parse an earlier result, and mark it as a replay."""
    kept: dict[str, Any] = json.loads(text)
    administrator = parse_administrator(json.loads(kept["account"]))
    return AdminCommitted(administrator, _entry_of(kept["entry"]), is_replay=True)


def _body_of(entry: AuditEntry | None) -> Json:
    return entry.to_stored().body if entry is not None else None


def _entry_of(body: str | None) -> AuditEntry | None:
    return parse_entry(body) if body is not None else None

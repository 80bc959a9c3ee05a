"""Parsing stored records, and serializing the results under idempotency keys: the same in every store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from sidecar.domain.accounts import Administrator, parse_administrator, stored_administrator
from sidecar.domain.audit import AuditEntry, parse_entry
from sidecar.domain.canonical import Json, canonical_json
from sidecar.domain.changes import AdminCommitted, Committed
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle.outcome import Notice
from sidecar.domain.records import from_stored, to_stored
from sidecar.stores.registry.protocol import RegistryDamagedError

Value = TypeVar("Value")

_FORMAT_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError)


def parse_stored(what: str, parse: Callable[[], Value]) -> Value:
    """
    Return the result of *parse*, which parses stored data named *what*.

    Raises:
        RegistryDamagedError: the data is malformed.
    """
    try:
        return parse()
    except _FORMAT_ERRORS as error:
        raise RegistryDamagedError(
            f"{what} cannot be read ({error!r}): verify the audit log, and restore a backup"
        ) from error


def record_of(text: str | bytes) -> Integration:
    """Parse an integration's record."""
    return parse_stored("an integration's record", lambda: from_stored(json.loads(text)))


def account_of(text: str | bytes) -> Administrator:
    """Parse an administrator's record."""
    return parse_stored("an administrator's record", lambda: parse_administrator(json.loads(text)))


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

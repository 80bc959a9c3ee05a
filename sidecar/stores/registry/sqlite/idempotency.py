"""Idempotency keys in the registry file, kept for a day and up to a maximum number."""

from __future__ import annotations

import sqlite3

from sidecar.domain.changes import ChangeContext
from sidecar.domain.roles import Actor
from sidecar.stores.registry.base import idempotency_mismatch
from sidecar.stores.registry.protocol import IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_LIFETIME_US


def find_result(
    database: sqlite3.Connection, actor: Actor, context: ChangeContext, now_us: int
) -> str | None:
    """
    The earlier result for this administrator's idempotency key; None = a new key, or no key.

    Raises:
        ConflictError: the key was used for another request.
    """
    if not context.idempotency_key:
        return None
    found = database.execute(
        "SELECT fingerprint, result FROM idempotency WHERE actor = ? AND key = ? AND at_us > ?",
        (actor.id, context.idempotency_key, now_us - IDEMPOTENCY_LIFETIME_US),
    ).fetchone()
    if found is None:
        return None
    fingerprint, result = found
    if fingerprint != context.fingerprint:
        raise idempotency_mismatch()
    return str(result)


def keep_result(
    database: sqlite3.Connection, actor: Actor, context: ChangeContext, result: str, now_us: int
) -> None:
    """Store *result* under the key; delete expired keys, and the oldest beyond the maximum number."""
    database.execute("DELETE FROM idempotency WHERE at_us <= ?", (now_us - IDEMPOTENCY_LIFETIME_US,))
    database.execute(
        "DELETE FROM idempotency WHERE (actor, key) IN (SELECT actor, key FROM idempotency"
        " ORDER BY at_us LIMIT max(0, (SELECT count(*) FROM idempotency) - ?))",
        (IDEMPOTENCY_KEYS_MAX - 1,),
    )
    database.execute(
        "INSERT INTO idempotency (actor, key, fingerprint, at_us, result) VALUES (?, ?, ?, ?, ?)",
        (actor.id, context.idempotency_key, context.fingerprint, now_us, result),
    )

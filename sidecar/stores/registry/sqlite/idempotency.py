"""Idempotency keys in the registry file: for a day, and at most so many."""

from __future__ import annotations

import sqlite3

from sidecar.domain.changes import ChangeContext
from sidecar.domain.refusals import Code, refusal
from sidecar.domain.roles import Actor
from sidecar.stores.registry.protocol import IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_LIFETIME_US


def find_result(
    database: sqlite3.Connection, actor: Actor, context: ChangeContext, now_us: int
) -> str | None:
    """
    The result that this administrator's key stands for; None = it is a new key, or there is none.

    Raises:
        ConflictError: it stands for another request.
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
        raise refusal(
            Code.IDEMPOTENCY_MISMATCH,
            "idempotency_key",
            "this idempotency key was used for a different request",
            "send a fresh key with each new request, and the same one only to repeat it",
        )
    return str(result)


def keep_result(
    database: sqlite3.Connection, actor: Actor, context: ChangeContext, result: str, now_us: int
) -> None:
    """Keep *result* under the key; keys that are too old, and the oldest of too many, make way."""
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

"""Writing to the registry file; each function runs in the caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from functools import partial

from sidecar.domain.accounts import confirm
from sidecar.domain.administrators import AdminOutcome
from sidecar.domain.audit import AuditEntry
from sidecar.domain.changes import (
    SIDECAR_LIFETIME_US,
    SIDECARS_MAX,
    AdminCommitted,
    AdminRequest,
    ChangeContext,
    ChangeRequest,
    Committed,
    Current,
    Revision,
    plan,
    plan_administration,
)
from sidecar.domain.lifecycle.credentials import credential_id_used
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.lifecycle.outcome import ADDRESSES_SEEN_MAX, Outcome
from sidecar.domain.roles import Actor
from sidecar.stores.registry.base import idempotency_mismatch, token_id_used
from sidecar.stores.registry.derived import search_text
from sidecar.stores.registry.protocol import (
    IDEMPOTENCY_KEYS_MAX,
    IDEMPOTENCY_LIFETIME_US,
    REFUSED_MAX,
    SEEN_WINDOW_US,
    TOKEN_USES_MAX,
    CredentialUse,
    RefusedCaller,
    TokenUse,
)
from sidecar.stores.registry.results import (
    replayed_admin_commit,
    replayed_commit,
    stored_admin_commit,
    stored_commit,
)
from sidecar.stores.registry.sqlite import reads
from sidecar.stores.registry.sqlite.transactions import in_savepoint


def change(
    database: sqlite3.Connection, lifecycle: Lifecycle, request: ChangeRequest, now_us: int
) -> Committed:
    """
    Make one change: read, plan and write within the caller's transaction.

    Raises:
        RefusedError: the caller must roll back.
    """
    holder = reads.administrator(database, request.actor.id)
    kept = _find_result(database, confirm(request.actor, holder, now_us), request.context, now_us)
    if kept is not None:
        return replayed_commit(kept)
    planned = plan(lifecycle, current(database, request, now_us), request, now_us)
    outcome = planned.outcome
    if planned.stored is not None and planned.entry is not None:
        _append(database, planned.entry)
        _claim(database, outcome)
        _put_record(database, outcome, planned.stored, planned.entry)
        _put_secrets(database, outcome)
    committed = Committed(outcome.record, planned.entry, outcome.notices, outcome.is_deleted)
    if request.context.idempotency_key:
        _keep_result(database, request.actor, request.context, stored_commit(committed), now_us)
    return committed


def change_many(
    database: sqlite3.Connection, lifecycle: Lifecycle, requests: Sequence[ChangeRequest], now_us: int
) -> tuple[Committed | BaseException, ...]:
    """Make each change in its own savepoint; return its result or exception."""
    return tuple(
        in_savepoint(database, partial(change, lifecycle=lifecycle, request=request, now_us=now_us))
        for request in requests
    )


def preview(
    database: sqlite3.Connection, lifecycle: Lifecycle, request: ChangeRequest, now_us: int
) -> Outcome:
    """The outcome that `change` would have; reads only."""
    outcome = plan(lifecycle, current(database, request, now_us), request, now_us).outcome
    _require_unclaimed(database, outcome.claims)
    return outcome


def current(database: sqlite3.Connection, request: ChangeRequest, now_us: int) -> Current:
    """The stored state that this change is planned on."""
    integration_id = request.command.integration_id
    found = reads.record(database, integration_id)
    return Current(
        record=found.record if found is not None and not found.is_deleted else None,
        is_deleted=found is not None and found.is_deleted,
        holder=reads.administrator(database, request.actor.id),
        head=reads.head(database),
        addresses_seen=reads.addresses_seen(database, integration_id, now_us),
    )


def administer(database: sqlite3.Connection, request: AdminRequest, now_us: int) -> AdminCommitted:
    """
    Make one change of administrators within the caller's transaction.

    Raises:
        RefusedError: the caller must roll back.
    """
    directory = {administrator.id: administrator for administrator in reads.administrators(database)}
    actor = request.actor
    if actor is not None:
        actor = confirm(actor, directory.get(actor.id), now_us)
        kept = _find_result(database, actor, request.context, now_us)
        if kept is not None:
            return replayed_admin_commit(kept)
    planned = plan_administration(directory, reads.head(database), request, now_us)
    outcome = planned.outcome
    if planned.stored is not None and planned.entry is not None:
        _append(database, planned.entry)
        _put_administrator(database, outcome, planned.stored, planned.entry)
    committed = AdminCommitted(outcome.administrator, planned.entry)
    if actor is not None and request.context.idempotency_key:
        _keep_result(database, actor, request.context, stored_admin_commit(committed), now_us)
    return committed


def record_uses(database: sqlite3.Connection, uses: Sequence[CredentialUse]) -> None:
    """Record the latest use of each credential and the addresses of each integration, both bounded."""
    database.executemany(
        "INSERT INTO credential_uses (integration_id, credential_id, at_us, address)"
        " SELECT integration_id, id, ?2, ?3 FROM credential_ids WHERE id = ?1 AND integration_id = ?4"
        " ON CONFLICT DO UPDATE SET at_us = excluded.at_us, address = excluded.address"
        " WHERE excluded.at_us >= at_us",
        [(use.credential_id, use.at_us, use.address, use.integration_id) for use in uses],
    )
    database.executemany(
        "INSERT INTO addresses_seen (integration_id, address, at_us)"
        " SELECT id, ?2, ?3 FROM integrations WHERE id = ?1"
        " ON CONFLICT DO UPDATE SET at_us = max(at_us, excluded.at_us)",
        [(use.integration_id, use.address, use.at_us) for use in uses],
    )
    for integration_id in {use.integration_id for use in uses}:
        database.execute(
            "DELETE FROM addresses_seen WHERE integration_id = ?1 AND (address NOT IN ("
            "SELECT address FROM addresses_seen WHERE integration_id = ?1 ORDER BY at_us DESC LIMIT ?2)"
            " OR at_us < (SELECT max(at_us) FROM addresses_seen WHERE integration_id = ?1) - ?3)",
            (integration_id, ADDRESSES_SEEN_MAX, SEEN_WINDOW_US),
        )


def record_refusals(database: sqlite3.Connection, refusals: Sequence[RefusedCaller]) -> None:
    """Record refused callers; keep the `REFUSED_MAX` latest of each integration."""
    database.executemany(
        "INSERT INTO refused_callers (integration_id, credential_id, address, at_us)"
        " SELECT id, ?2, ?3, ?4 FROM integrations WHERE id = ?1"
        " ON CONFLICT DO UPDATE SET at_us = max(at_us, excluded.at_us)",
        refusals,
    )
    for integration_id in {caller.integration_id for caller in refusals}:
        database.execute(
            "DELETE FROM refused_callers WHERE integration_id = ?1 AND (credential_id, address) NOT IN ("
            "SELECT credential_id, address FROM refused_callers WHERE integration_id = ?1"
            " ORDER BY at_us DESC LIMIT ?2)",
            (integration_id, REFUSED_MAX),
        )


def record_token_uses(database: sqlite3.Connection, uses: Sequence[TokenUse]) -> None:
    """Record the latest use of each token; keep the `TOKEN_USES_MAX` latest."""
    database.executemany(
        "INSERT INTO token_uses (token_id, at_us, source) SELECT id, ?2, ?3 FROM token_ids WHERE id = ?1"
        " ON CONFLICT DO UPDATE SET at_us = excluded.at_us, source = excluded.source"
        " WHERE excluded.at_us >= at_us",
        uses,
    )
    database.execute(
        "DELETE FROM token_uses WHERE at_us < coalesce("
        "(SELECT at_us FROM token_uses ORDER BY at_us DESC LIMIT 1 OFFSET ?), 0)",
        (TOKEN_USES_MAX - 1,),
    )


def announce(database: sqlite3.Connection, sidecar_id: str, revision: Revision, now_us: int) -> None:
    """Record that a sidecar is alive; delete those that are not."""
    database.execute("DELETE FROM sidecars WHERE seen_at_us < ?", (now_us - SIDECAR_LIFETIME_US,))
    database.execute(
        "INSERT INTO sidecars (id, revision, seen_at_us) SELECT ?1, ?2, ?3"
        " WHERE (SELECT count(*) FROM sidecars WHERE id != ?1) < ?4"
        " ON CONFLICT DO UPDATE SET revision = excluded.revision, seen_at_us = excluded.seen_at_us",
        (sidecar_id, str(revision), now_us, SIDECARS_MAX),
    )


def _append(database: sqlite3.Connection, entry: AuditEntry) -> None:
    stored = entry.to_stored()
    database.execute(
        "INSERT INTO audit (sequence, digest, body) VALUES (?, ?, ?)",
        (stored.sequence, stored.digest, stored.body),
    )


def _claim(database: sqlite3.Connection, outcome: Outcome) -> None:
    """Claim credential ids, which must never have been issued."""
    _require_unclaimed(database, outcome.claims)
    database.executemany(
        "INSERT INTO credential_ids (id, integration_id, generation) VALUES (?, ?, ?)",
        [(credential_id, outcome.record.id, outcome.record.generation) for credential_id in outcome.claims],
    )


def _require_unclaimed(database: sqlite3.Connection, claims: Sequence[str]) -> None:
    for credential_id in claims:
        if database.execute("SELECT 1 FROM credential_ids WHERE id = ?", (credential_id,)).fetchone():
            raise credential_id_used(credential_id)


def _put_record(database: sqlite3.Connection, outcome: Outcome, stored: str, entry: AuditEntry) -> None:
    record = outcome.record
    status = "deleted" if outcome.is_deleted else record.status.value
    values = (status, record.generation, entry.sequence, search_text(record), stored, record.id)
    if record.generation == 1:
        # Not an upsert, which would run the triggers of INSERT on an UPDATE.
        database.execute(
            "INSERT INTO integrations (status, generation, sequence, search, record, id)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            values,
        )
    else:
        database.execute(
            "UPDATE integrations SET status = ?, generation = ?, sequence = ?, search = ?, record = ?"
            " WHERE id = ?",
            values,
        )


def _put_secrets(database: sqlite3.Connection, outcome: Outcome) -> None:
    """Store new webhook secrets, and delete those that the record no longer names."""
    record = outcome.record
    database.executemany(
        "INSERT INTO webhook_secrets (integration_id, id, sealed) VALUES (?, ?, ?)",
        [(record.id, secret.id, secret.sealed) for secret in outcome.sealed],
    )
    kept = json.dumps([secret.id for secret in record.webhook_secrets])
    database.execute(
        "DELETE FROM webhook_secrets WHERE integration_id = ? AND id NOT IN (SELECT value FROM json_each(?))",
        (record.id, kept),
    )


def _put_administrator(
    database: sqlite3.Connection, outcome: AdminOutcome, stored: str, entry: AuditEntry
) -> None:
    administrator = outcome.administrator
    for token_id in outcome.claims:
        if database.execute("SELECT 1 FROM token_ids WHERE id = ?", (token_id,)).fetchone():
            raise token_id_used(token_id)
        database.execute(
            "INSERT INTO token_ids (id, administrator_id) VALUES (?, ?)", (token_id, administrator.id)
        )
    values = (administrator.generation, entry.sequence, stored, administrator.id)
    if administrator.generation == 1:
        database.execute(
            "INSERT INTO administrators (generation, sequence, record, id) VALUES (?, ?, ?, ?)", values
        )
    else:
        database.execute(
            "UPDATE administrators SET generation = ?, sequence = ?, record = ? WHERE id = ?", values
        )


def _find_result(
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


def _keep_result(
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

"""Reading the registry file; each function runs in the caller's transaction, if any."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping

from sidecar.domain.accounts import Administrator
from sidecar.domain.audit import ChainHead, StoredEntry, empty_chain, parse_entry
from sidecar.domain.changes import SIDECAR_LIFETIME_US, LiveSidecar, Revision
from sidecar.domain.cidr import Address
from sidecar.domain.integrations import INTEGRATION_ID, Integration
from sidecar.domain.lifecycle.commands import SealedSecret
from sidecar.domain.lifecycle.outcome import ADDRESSES_SEEN_MAX
from sidecar.domain.records import record_digest
from sidecar.stores.registry.base import FoundRecord, bad_cursor, require_limit
from sidecar.stores.registry.protocol import (
    CHANGES_MAX,
    PAGE_MAX,
    REFUSED_MAX,
    REFUSED_WINDOW_US,
    SEEN_WINDOW_US,
    TOKEN_USES_MAX,
    AuditPage,
    AuditQuery,
    Changes,
    IntegrationPage,
    LastUse,
    ListQuery,
    RecordProof,
    RefusedCaller,
    RegistryView,
    TokenUse,
)
from sidecar.stores.registry.results import account_of, parse_stored, record_of
from sidecar.stores.registry.sqlite.derived import integration_problems

_RECORDS_PER_TURN = 10
_PAUSE_S = 0.000_05
"""Long enough for a thread switch: a thread that only releases the GIL often gets it back first."""
_SUBJECTS = (("administrator:", "administrators", "''"), ("integration:", "integrations", "status"))


def head(database: sqlite3.Connection) -> ChainHead:
    """The latest audit entry."""
    found = database.execute(
        "SELECT sequence, digest, body FROM audit ORDER BY sequence DESC LIMIT 1"
    ).fetchone()
    if found is None:
        return empty_chain()
    sequence, digest, body = found
    return parse_stored(
        "the latest audit entry", lambda: ChainHead(0, sequence, digest, parse_entry(body).at_us)
    )


def revision(database: sqlite3.Connection) -> Revision:
    """The sequence of the latest audit entry, which every change has."""
    (sequence,) = database.execute("SELECT coalesce(max(sequence), 0) FROM audit").fetchone()
    return Revision((sequence,))


def record(database: sqlite3.Connection, integration_id: str) -> FoundRecord | None:
    """The record with this id, also of a deleted integration."""
    found = database.execute(
        "SELECT record, status FROM integrations WHERE id = ?", (integration_id,)
    ).fetchone()
    return FoundRecord(record_of(found[0]), found[1] == "deleted") if found is not None else None


def list_records(database: sqlite3.Connection, query: ListQuery) -> IntegrationPage:
    """One page of integrations."""
    require_limit(query.limit)
    if query.after and not INTEGRATION_ID.fullmatch(query.after):
        raise bad_cursor()
    rows = database.execute(
        "SELECT record FROM integrations WHERE id > ? AND status != 'deleted'"
        " AND (? = '' OR status = ?) AND (? = '' OR instr(search, ?)) ORDER BY id LIMIT ?",
        (
            query.after,
            *(2 * (query.status.value if query.status is not None else "",)),
            *(2 * (query.search.casefold(),)),
            query.limit + 1,
        ),
    ).fetchall()
    records = tuple(record_of(row[0]) for row in rows[: query.limit])
    return IntegrationPage(records, records[-1].id if len(rows) > query.limit else "")


def load_all(database: sqlite3.Connection) -> RegistryView:
    """All integrations and their revision."""
    rows = database.execute(
        "SELECT record FROM integrations WHERE status != 'deleted' ORDER BY id"
    ).fetchall()
    return RegistryView(revision(database), tuple(_parse_with_pauses(row[0] for row in rows)))


def changes_since(database: sqlite3.Connection, since: Revision) -> Changes:
    """The integrations whose latest change is after *since*, in the order of those changes."""
    latest = revision(database)
    if len(since.sequences) != 1 or since.sequences[0] > latest.sequences[0]:
        return Changes(latest, is_reset=True)
    rows = database.execute(
        "SELECT id, status, sequence, record FROM integrations WHERE sequence > ? ORDER BY sequence LIMIT ?",
        (since.sequences[0], CHANGES_MAX + 1),
    ).fetchall()
    has_more = len(rows) > CHANGES_MAX
    rows = rows[:CHANGES_MAX]
    return Changes(
        Revision((rows[-1][2],)) if has_more else latest,
        records=tuple(_parse_with_pauses(row[3] for row in rows if row[1] != "deleted")),
        deleted=tuple(row[0] for row in rows if row[1] == "deleted"),
        has_more=has_more,
    )


def audit_page(database: sqlite3.Connection, query: AuditQuery) -> AuditPage:
    """One page of the audit log; without filters the query reads only the key, digest and body."""
    require_limit(query.limit)
    if query.after and not (query.after.isascii() and query.after.isdecimal() and len(query.after) <= 16):
        raise bad_cursor()
    if query.chain != 0:
        return AuditPage((), "")
    conditions, values = _conditions(query)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = "DESC" if query.newest_first else "ASC"
    rows = database.execute(
        f"SELECT sequence, digest, body FROM audit{where} ORDER BY sequence {order} LIMIT ?",  # noqa: S608
        (*values, query.limit + 1),
    ).fetchall()
    entries = tuple(StoredEntry(0, *row) for row in rows[: query.limit])
    return AuditPage(entries, str(entries[-1].sequence) if len(rows) > query.limit else "")


def _conditions(query: AuditQuery) -> tuple[list[str], list[object]]:
    """SQL conditions with placeholders, and the values for the placeholders."""
    wanted: list[tuple[str, object]] = [
        (f"{column} = ?", value)
        for column, value in (("subject", query.subject), ("actor", query.actor), ("action", query.action))
        if value
    ]
    if query.after:
        wanted.append(("sequence < ?" if query.newest_first else "sequence > ?", int(query.after)))
    if query.since_us > 0:
        wanted.append(("at_us >= ?", query.since_us))
    if query.until_us < AuditQuery().until_us:
        wanted.append(("at_us < ?", query.until_us))
    return [condition for condition, _ in wanted], [value for _, value in wanted]


def record_proofs(database: sqlite3.Connection, after: str) -> tuple[RecordProof, ...]:
    """Proofs of administrators' accounts and of integrations, ordered by subject."""
    proofs: list[RecordProof] = []
    for prefix, table, status in _SUBJECTS:
        if after >= prefix and not after.startswith(prefix):
            continue
        rows = database.execute(
            f"SELECT id, sequence, record, {status} FROM {table} WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
            (after.removeprefix(prefix) if after.startswith(prefix) else "", PAGE_MAX - len(proofs)),
        )
        for id, sequence, record, its_status in rows.fetchall():
            problems = integration_problems(database, id, record) if its_status else ()
            digest, is_deleted = record_digest(record), its_status == "deleted"
            proofs.append(RecordProof(prefix + id, 0, sequence, digest, is_deleted, problems))
    return tuple(proofs)


def webhook_secrets(database: sqlite3.Connection, integration_id: str) -> tuple[SealedSecret, ...]:
    """The sealed webhook secrets, in the order of the record."""
    found = record(database, integration_id)
    sealed = dict(
        database.execute(
            "SELECT id, sealed FROM webhook_secrets WHERE integration_id = ?", (integration_id,)
        ).fetchall()
    )
    known = found.record.webhook_secrets if found is not None else ()
    return tuple(SealedSecret(secret.id, sealed[secret.id]) for secret in known)


def last_uses(database: sqlite3.Connection, integration_id: str) -> Mapping[str, LastUse]:
    """The latest use of each credential of the integration."""
    rows = database.execute(
        "SELECT credential_id, at_us, address FROM credential_uses WHERE integration_id = ?",
        (integration_id,),
    )
    return {row[0]: LastUse(row[1], row[2]) for row in rows}


def addresses_seen(database: sqlite3.Connection, integration_id: str, now_us: int) -> tuple[Address, ...]:
    """The addresses seen in the last hour, newest first."""
    rows = database.execute(
        "SELECT address FROM addresses_seen WHERE integration_id = ? AND at_us > ?"
        " ORDER BY at_us DESC, address LIMIT ?",
        (integration_id, now_us - SEEN_WINDOW_US, ADDRESSES_SEEN_MAX),
    )
    return tuple(row[0] for row in rows)


def refused_callers(
    database: sqlite3.Connection, integration_id: str, now_us: int
) -> tuple[RefusedCaller, ...]:
    """The callers that the allowlist refused within `REFUSED_WINDOW_US`, newest first."""
    rows = database.execute(
        "SELECT integration_id, credential_id, address, at_us FROM refused_callers"
        " WHERE integration_id = ? AND at_us > ? ORDER BY at_us DESC, address, credential_id LIMIT ?",
        (integration_id, now_us - REFUSED_WINDOW_US, REFUSED_MAX),
    )
    return tuple(RefusedCaller(*row) for row in rows)


def token_uses(database: sqlite3.Connection) -> Mapping[str, TokenUse]:
    """The last use of each token."""
    rows = database.execute(
        "SELECT token_id, at_us, source FROM token_uses ORDER BY at_us DESC LIMIT ?", (TOKEN_USES_MAX,)
    )
    return {row[0]: TokenUse(*row) for row in rows}


def administrator(database: sqlite3.Connection, administrator_id: str) -> Administrator | None:
    """One account, also a removed one."""
    found = database.execute("SELECT record FROM administrators WHERE id = ?", (administrator_id,)).fetchone()
    return account_of(found[0]) if found is not None else None


def administrators(database: sqlite3.Connection) -> tuple[Administrator, ...]:
    """Every account, ordered by id."""
    rows = database.execute("SELECT record FROM administrators ORDER BY id")
    return tuple(account_of(row[0]) for row in rows)


def token_holder(database: sqlite3.Connection, token_id: str) -> Administrator | None:
    """The account that a token id was issued to."""
    found = database.execute(
        "SELECT record FROM administrators WHERE id = (SELECT administrator_id FROM token_ids WHERE id = ?)",
        (token_id,),
    ).fetchone()
    return account_of(found[0]) if found is not None else None


def live_sidecars(database: sqlite3.Connection, now_us: int) -> tuple[LiveSidecar, ...]:
    """The sidecars that announced themselves within `SIDECAR_LIFETIME_US`."""
    rows = database.execute(
        "SELECT id, revision, seen_at_us FROM sidecars WHERE seen_at_us > ? ORDER BY id",
        (now_us - SIDECAR_LIFETIME_US,),
    )
    return tuple(LiveSidecar(row[0], Revision.parse(row[1]), row[2]) for row in rows)


def _parse_with_pauses(texts: Iterable[str]) -> Iterator[Integration]:
    """
    Parse many records with pauses in which the event loop's thread can run.

    Used only for reads of processes that also decide. Lists are read by the admin API's process, where the
    timers of these pauses would only disturb other processes.
    """
    for count, text in enumerate(texts, 1):
        yield record_of(text)
        if count % _RECORDS_PER_TURN == 0:
            time.sleep(_PAUSE_S)

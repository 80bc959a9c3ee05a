"""
The tables of the SQLite registry, and triggers that enforce the rules whatever program writes to the file.

`MIGRATIONS[n]` migrates a file from version n to n + 1. A published migration never changes.
"""

from __future__ import annotations

APPLICATION_ID = 0x53434152
"""'SCAR' in the file's header: identifies a registry among SQLite files."""

# The other columns are computed from the body, so that they cannot differ from it.
_AUDIT = """
CREATE TABLE audit (
    sequence   INTEGER PRIMARY KEY,
    digest     TEXT NOT NULL CHECK (length(digest) = 64),
    body       TEXT NOT NULL CHECK (json_extract(body, '$.sequence') = sequence),
    at_us      INTEGER NOT NULL AS (json_extract(body, '$.at_us')),
    actor      TEXT NOT NULL AS (json_extract(body, '$.actor')),
    action     TEXT NOT NULL AS (json_extract(body, '$.action')),
    subject    TEXT NOT NULL AS (json_extract(body, '$.subject')),
    generation INTEGER NOT NULL AS (json_extract(body, '$.generation'))
) STRICT
"""

# Deleted integrations are kept with the status 'deleted': their ids are never used again.
_INTEGRATIONS = """
CREATE TABLE integrations (
    id         TEXT PRIMARY KEY,
    status     TEXT NOT NULL CHECK (status IN ('active', 'suspended', 'deleted')),
    generation INTEGER NOT NULL CHECK (json_extract(record, '$.generation') = generation),
    sequence   INTEGER NOT NULL REFERENCES audit (sequence),
    search     TEXT NOT NULL,
    record     TEXT NOT NULL CHECK (
        json_extract(record, '$.id') = id
        AND (status = 'deleted' OR json_extract(record, '$.status') = status)
    )
) STRICT
"""

# An id is claimed once, in the generation that issues it, so that it can never be issued again.
_CREDENTIAL_IDS = """
CREATE TABLE credential_ids (
    id             TEXT PRIMARY KEY,
    integration_id TEXT NOT NULL REFERENCES integrations (id) DEFERRABLE INITIALLY DEFERRED,
    generation     INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""

_WEBHOOK_SECRETS = """
CREATE TABLE webhook_secrets (
    integration_id TEXT NOT NULL REFERENCES integrations (id),
    id             TEXT NOT NULL,
    sealed         TEXT NOT NULL,
    PRIMARY KEY (integration_id, id)
) STRICT, WITHOUT ROWID
"""

_ADMINISTRATORS = """
CREATE TABLE administrators (
    id         TEXT PRIMARY KEY,
    generation INTEGER NOT NULL CHECK (json_extract(record, '$.generation') = generation),
    sequence   INTEGER NOT NULL REFERENCES audit (sequence),
    record     TEXT NOT NULL CHECK (json_extract(record, '$.id') = id)
) STRICT
"""

_TOKENS_CLAIMED = """
CREATE TABLE token_ids (
    id               TEXT PRIMARY KEY,
    administrator_id TEXT NOT NULL REFERENCES administrators (id) DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID
"""

_IDEMPOTENCY = """
CREATE TABLE idempotency (
    actor       TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    at_us       INTEGER NOT NULL,
    result      TEXT NOT NULL,
    PRIMARY KEY (actor, key)
) STRICT, WITHOUT ROWID
"""

_CREDENTIAL_USES = """
CREATE TABLE credential_uses (
    integration_id TEXT NOT NULL,
    credential_id  TEXT NOT NULL,
    at_us          INTEGER NOT NULL,
    address        BLOB NOT NULL,
    PRIMARY KEY (integration_id, credential_id)
) STRICT, WITHOUT ROWID
"""

_ADDRESSES_SEEN = """
CREATE TABLE addresses_seen (
    integration_id TEXT NOT NULL,
    address        BLOB NOT NULL,
    at_us          INTEGER NOT NULL,
    PRIMARY KEY (integration_id, address)
) STRICT, WITHOUT ROWID
"""

_SIDECARS = """
CREATE TABLE sidecars (
    id         TEXT PRIMARY KEY,
    revision   TEXT NOT NULL,
    seen_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""

_REFUSED_CALLERS = """
CREATE TABLE refused_callers (
    integration_id TEXT NOT NULL,
    credential_id  TEXT NOT NULL,
    address        BLOB NOT NULL,
    at_us          INTEGER NOT NULL,
    PRIMARY KEY (integration_id, credential_id, address)
) STRICT, WITHOUT ROWID
"""

_USES_OF_TOKENS = """
CREATE TABLE token_uses (
    token_id TEXT PRIMARY KEY,
    at_us    INTEGER NOT NULL,
    source   TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

_INDEXES = (
    "CREATE INDEX audit_subject ON audit (subject, sequence)",
    "CREATE INDEX audit_actor ON audit (actor, sequence)",
    "CREATE INDEX audit_action ON audit (action, sequence)",
    "CREATE INDEX integrations_sequence ON integrations (sequence)",
    "CREATE INDEX integrations_status ON integrations (status, id)",
    "CREATE INDEX idempotency_age ON idempotency (at_us)",
    "CREATE INDEX addresses_seen_age ON addresses_seen (integration_id, at_us)",
)


def _guard(name: str, when: str, message: str, condition: str = "TRUE") -> str:
    """A trigger that aborts the statement when *condition* holds."""
    return f"CREATE TRIGGER {name} {when} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"


_AUDIT_GUARDS = (
    _guard("audit_never_updated", "BEFORE UPDATE ON audit", "audit entries are never changed"),
    _guard("audit_never_deleted", "BEFORE DELETE ON audit", "audit entries are never deleted"),
    _guard(
        "audit_linked",
        "BEFORE INSERT ON audit",
        "an audit entry must follow the latest one",
        """
        NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM audit)
        OR json_extract(NEW.body, '$.previous') IS NOT coalesce(
            (SELECT digest FROM audit ORDER BY sequence DESC LIMIT 1),
            '0000000000000000000000000000000000000000000000000000000000000000'
        )
        """,
    ),
)

_NOT_AUDITED = """NOT EXISTS (
    SELECT 1 FROM audit
    WHERE sequence = NEW.sequence AND generation = NEW.generation AND subject = '{kind}:' || NEW.id
)"""

_UNCLAIMED_CREDENTIAL = """EXISTS (
    SELECT 1 FROM json_each(NEW.record, '$.credentials') AS fresh
    WHERE NOT EXISTS (
        SELECT 1 FROM credential_ids
        WHERE id = json_extract(fresh.value, '$.id') AND integration_id = NEW.id
        AND generation = json_extract(fresh.value, '$.issued_generation')
    )
)"""

_OTHER_DIGEST = """EXISTS (
    SELECT 1 FROM json_each(NEW.record, '$.credentials') AS fresh
    JOIN json_each(OLD.record, '$.credentials') AS known
        ON json_extract(known.value, '$.id') = json_extract(fresh.value, '$.id')
    WHERE json_extract(known.value, '$.digest') != json_extract(fresh.value, '$.digest')
)"""

# The rules of docs/administer/lifecycle.md that no program may break, checked when a record is written.
_INTEGRATION_GUARDS = (
    _guard("integrations_never_deleted", "BEFORE DELETE ON integrations", "integrations are never deleted"),
    _guard(
        "integrations_inserted",
        "BEFORE INSERT ON integrations",
        "an integration starts active, at generation 1, with an audit entry and claimed credential ids",
        f"""
        NEW.status != 'active' OR NEW.generation != 1
        OR json_extract(NEW.record, '$.suspended_generation') != 0
        OR {_NOT_AUDITED.format(kind="integration")} OR {_UNCLAIMED_CREDENTIAL}
        """,
    ),
    _guard(
        "integrations_updated",
        "BEFORE UPDATE ON integrations",
        "a change needs an audit entry, the next generation, and credentials claimed when they were issued",
        f"""
        NEW.id != OLD.id OR NEW.generation != OLD.generation + 1
        OR {_NOT_AUDITED.format(kind="integration")} OR {_UNCLAIMED_CREDENTIAL}
        """,
    ),
    _guard(
        "integrations_stay_deleted",
        "BEFORE UPDATE ON integrations",
        "a deleted integration never changes",
        "OLD.status = 'deleted'",
    ),
    _guard(
        "integrations_credentials_kept",
        "BEFORE UPDATE ON integrations",
        "a credential keeps its digest",
        _OTHER_DIGEST,
    ),
    _guard(
        "integrations_suspension_counted",
        "BEFORE UPDATE ON integrations",
        "a suspension puts its own generation on record, and that never goes back",
        """
        json_extract(NEW.record, '$.suspended_generation')
            IS NOT json_extract(OLD.record, '$.suspended_generation')
        AND json_extract(NEW.record, '$.suspended_generation') IS NOT NEW.generation
        OR OLD.status = 'active' AND NEW.status = 'suspended'
        AND json_extract(NEW.record, '$.suspended_generation') IS NOT NEW.generation
        """,
    ),
    _guard(
        "integrations_suspenders_kept",
        "BEFORE UPDATE ON integrations",
        "whoever suspended an integration stays on record until it is reactivated",
        """
        NEW.status = 'suspended' AND (
            EXISTS (
                SELECT json_extract(value, '$.by') FROM json_each(OLD.record, '$.suspensions')
                EXCEPT SELECT json_extract(value, '$.by') FROM json_each(NEW.record, '$.suspensions')
            )
            OR OLD.status = 'active' AND (SELECT actor FROM audit WHERE sequence = NEW.sequence) NOT IN (
                SELECT json_extract(value, '$.by') FROM json_each(NEW.record, '$.suspensions')
            )
        )
        """,
    ),
    _guard(
        "integrations_reactivated_by_another",
        "BEFORE UPDATE ON integrations",
        "whoever suspended an integration cannot reactivate it",
        """
        OLD.status = 'suspended' AND NEW.status = 'active'
        AND (SELECT actor FROM audit WHERE sequence = NEW.sequence) IN (
            SELECT json_extract(value, '$.by') FROM json_each(OLD.record, '$.suspensions')
        )
        """,
    ),
    _guard(
        "integrations_reactivated_reissued",
        "BEFORE UPDATE ON integrations",
        "a reactivation needs a credential that was issued since the suspension",
        """
        OLD.status = 'suspended' AND NEW.status = 'active'
        AND json_array_length(NEW.record, '$.credentials') = 0
        """,
    ),
    _guard(
        "integrations_active_without_old_credentials",
        "BEFORE UPDATE ON integrations",
        "a credential from before the latest suspension never works again",
        """
        NEW.status = 'active' AND EXISTS (
            SELECT 1 FROM json_each(NEW.record, '$.credentials')
            WHERE json_extract(value, '$.issued_generation')
                < json_extract(NEW.record, '$.suspended_generation')
        )
        """,
    ),
)

_OTHER_GUARDS = (
    _guard(
        "administrators_inserted",
        "BEFORE INSERT ON administrators",
        "an administrator needs an audit entry",
        _NOT_AUDITED.format(kind="administrator"),
    ),
    _guard(
        "administrators_updated",
        "BEFORE UPDATE ON administrators",
        "a change of an administrator needs an audit entry and the next generation",
        "NEW.id != OLD.id OR NEW.generation != OLD.generation + 1"
        f" OR {_NOT_AUDITED.format(kind='administrator')}",
    ),
    _guard(
        "administrators_never_deleted", "BEFORE DELETE ON administrators", "administrators are never deleted"
    ),
    *(
        _guard(f"{table}_never_{verb}d", f"BEFORE {verb.upper()} ON {table}", f"{table} are kept for ever")
        for table in ("credential_ids", "token_ids")
        for verb in ("update", "delete")
    ),
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        _AUDIT,
        _INTEGRATIONS,
        _CREDENTIAL_IDS,
        _WEBHOOK_SECRETS,
        _ADMINISTRATORS,
        _TOKENS_CLAIMED,
        _IDEMPOTENCY,
        _CREDENTIAL_USES,
        _ADDRESSES_SEEN,
        _SIDECARS,
        *_INDEXES,
        *_AUDIT_GUARDS,
        *_INTEGRATION_GUARDS,
        *_OTHER_GUARDS,
    ),
    (_REFUSED_CALLERS, _USES_OF_TOKENS),
)
"""The statements of each migration; each migration is one transaction."""

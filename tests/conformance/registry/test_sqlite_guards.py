"""The guards in the registry's file: what they refuse to any program, and what is found without them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.domain.audit import Finding, FindingKind, entry_digest, parse_entry
from sidecar.domain.canonical import canonical_json
from sidecar.domain.integrations import Credential, Integration, Status, Suspension
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.records import stored_text
from sidecar.stores.registry.protocol import AuditQuery, RegistryDamagedError
from sidecar.stores.registry.sqlite.file import connect
from sidecar.stores.registry.verification import verify_registry
from tests.administration import ANN, BOB, CAT, ID, create, credential, digest, set_up
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import RegistryHarness, SqliteBackend

SUSPEND = c.Suspend(integration_id=ID, reason="key leaked")
ISSUE = c.IssueCredential(integration_id=ID, credential=credential("new"))


@pytest.fixture
def harness(tmp_path: Path, clock: ManualClock, runner: asyncio.Runner) -> Iterator[RegistryHarness]:
    """A registry with a suspended integration that has a new credential, and a deleted one."""
    made = RegistryHarness(SqliteBackend(tmp_path, clock), clock, runner)
    made.apply(set_up())
    made.apply(SUSPEND, ANN)
    made.apply(ISSUE, ANN)
    made.apply(create("gone"))
    made.apply(c.DeleteIntegration(integration_id="gone"))
    yield made
    made.run(made.registry.aclose())


@pytest.fixture
def intruder(harness: RegistryHarness) -> Iterator[sqlite3.Connection]:
    """Another program with write access to the file."""
    assert isinstance(harness.backend, SqliteBackend)
    with closing(connect(harness.backend.path)) as database:
        yield database


def refused(intruder: sqlite3.Connection, words: str, *statements: str) -> None:
    """*statements* are aborted by the guard whose message has *words*."""
    intruder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(sqlite3.IntegrityError, match=words):
            for statement in statements:
                intruder.execute(statement)
    finally:
        intruder.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE audit SET body = body", "never changed"),
        ("UPDATE audit SET digest = digest WHERE sequence = 3", "never changed"),
        ("DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)", "never deleted"),
        ("DELETE FROM audit", "never deleted"),
        ("REPLACE INTO audit (sequence, digest, body) SELECT sequence, digest, body FROM audit", "follow"),
        ("INSERT INTO audit (sequence, digest, body) SELECT 99, digest, body FROM audit", "follow"),
        ("UPDATE integrations SET status = 'active'", "audit entry|never works again"),
        ("UPDATE integrations SET id = 'other'", "audit entry"),
        ("UPDATE OR REPLACE integrations SET generation = generation + 1", "audit entry"),
        ("DELETE FROM integrations", "integrations are never deleted"),
        ("DELETE FROM integrations WHERE status = 'deleted'", "integrations are never deleted"),
        ("REPLACE INTO integrations SELECT * FROM integrations", "starts active"),
        ("UPDATE administrators SET generation = generation + 1", "audit entry"),
        ("DELETE FROM administrators WHERE id = 'bob'", "administrators are never deleted"),
        ("DELETE FROM credential_ids", "kept for ever"),
        ("UPDATE credential_ids SET integration_id = 'gone'", "kept for ever"),
        ("DELETE FROM token_ids", "kept for ever"),
    ],
)
def test_guards__refuse_what_no_program_may_do(
    intruder: sqlite3.Connection, statement: str, words: str
) -> None:
    """The audit log only grows by its next entry; records, accounts and claimed ids never vanish."""
    refused(intruder, words, statement)


def forge(
    harness: RegistryHarness,
    intruder: sqlite3.Connection,
    actor: str,
    change: Callable[[Integration], Integration],
) -> None:
    """
    Write a change as a forger who knows the format would: a proper next entry, and the record with it.

    Commits when the guards let it pass.
    """
    record = harness.get(ID)
    changed = replace(change(record), generation=record.generation + 1)
    (sequence, previous) = intruder.execute(
        "SELECT sequence, digest FROM audit ORDER BY 1 DESC LIMIT 1"
    ).fetchone()
    last = harness.run(harness.registry.audit(AuditQuery(limit=1))).entries[0]
    entry = {
        **json.loads(last.body),
        "sequence": sequence + 1,
        "previous": previous,
        "subject": f"integration:{ID}",
        "actor": actor,
        "generation": changed.generation,
    }
    body = canonical_json(entry)
    intruder.execute("BEGIN IMMEDIATE")
    try:
        intruder.execute(
            "INSERT INTO audit (sequence, digest, body) VALUES (?, ?, ?)",
            (sequence + 1, entry_digest(body), body),
        )
        intruder.execute(
            "UPDATE integrations SET status = ?, generation = ?, sequence = ?, record = ? WHERE id = ?",
            (changed.status.value, changed.generation, sequence + 1, stored_text(changed), ID),
        )
    except BaseException:
        intruder.execute("ROLLBACK")
        raise
    intruder.execute("COMMIT")


def reactivated(record: Integration) -> Integration:
    """*record* as a proper reactivation leaves it."""
    new = tuple(
        credential
        for credential in record.credentials
        if credential.issued_generation > record.suspended_generation
    )
    return replace(record, status=Status.ACTIVE, suspensions=(), credentials=new)


def test_forge__a_proper_change_passes(harness: RegistryHarness, intruder: sqlite3.Connection) -> None:
    """The forger's tool works: what the rules allow is written, so the refusals below are the guards'."""
    forge(harness, intruder, CAT.id, reactivated)
    assert harness.get(ID).status is Status.ACTIVE


@pytest.mark.parametrize(
    ("actor", "change", "words"),
    [
        (ANN, reactivated, "cannot reactivate"),
        (BOB, lambda one: replace(one, suspensions=()), "stays on record"),
        (BOB, lambda one: replace(reactivated(one), credentials=()), "issued since the suspension"),
        (BOB, lambda one: replace(one, status=Status.ACTIVE, suspensions=()), "never works again"),
        (BOB, lambda one: replace(reactivated(one), suspended_generation=0), "never goes back"),
        (
            BOB,
            lambda one: replace(
                one, credentials=tuple(replace(old, issued_generation=4) for old in one.credentials[:1])
            ),
            "claimed when they were issued",
        ),
        (
            BOB,
            lambda one: replace(
                one, credentials=(replace(one.credentials[0], issued_generation=3), one.credentials[1])
            ),
            "claimed when they were issued",
        ),
        (
            BOB,
            lambda one: replace(one, credentials=(replace(one.credentials[1], digest=digest("forged")),)),
            "keeps its digest",
        ),
        (
            BOB,
            lambda one: replace(
                one, credentials=(*one.credentials, Credential("unclaimed", digest("x"), None, 0, 4))
            ),
            "claimed when they were issued",
        ),
    ],
)
def test_guards__hold_the_reactivation_rule_against_a_forger(
    harness: RegistryHarness,
    intruder: sqlite3.Connection,
    actor: object,
    change: Callable[[Integration], Integration],
    words: str,
) -> None:
    """Not even with a proper audit entry: no suspender reactivates, no old credential comes back."""
    before = harness.get(ID)
    with pytest.raises(sqlite3.IntegrityError, match=words):
        forge(harness, intruder, actor.id, change)  # type: ignore[attr-defined]
    assert harness.get(ID) == before


def test_guards__a_suspension_must_name_its_suspender(
    harness: RegistryHarness, intruder: sqlite3.Connection
) -> None:
    """Nobody suspends in another's name, which would leave him free to reactivate."""
    forge(harness, intruder, CAT.id, reactivated)

    def blamed(record: Integration) -> Integration:
        generation = record.generation + 1
        suspension = Suspension("ann", 1, "why", generation, 1)
        return replace(
            record, status=Status.SUSPENDED, suspensions=(suspension,), suspended_generation=generation
        )

    with pytest.raises(sqlite3.IntegrityError, match="stays on record"):
        forge(harness, intruder, BOB.id, blamed)
    forge(harness, intruder, ANN.id, blamed)


def findings(harness: RegistryHarness) -> list[tuple[FindingKind, int]]:
    """What a verification finds: the kind, and the first entry that it names."""
    return [(finding.kind, finding.first) for finding in found(harness)]


def found(harness: RegistryHarness) -> list[Finding]:
    """What a verification finds in records and entries; what is derived from them is for test_derived.py."""
    every = harness.run(verify_registry(harness.registry)).findings
    return [finding for finding in every if finding.kind is not FindingKind.DERIVED_ALTERED]


def unguarded(intruder: sqlite3.Connection, *statements: str) -> None:
    """Run *statements* with every guard dropped, as someone who owns the file can."""
    kinds = "SELECT type, name FROM sqlite_schema WHERE type = 'trigger' OR (type = 'index' AND sql NOT NULL)"
    for kind, name in intruder.execute(kinds).fetchall():
        intruder.execute(f"DROP {kind} {name}")
    intruder.execute("PRAGMA ignore_check_constraints = ON")
    for statement in statements:
        intruder.execute(statement)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (
            ("UPDATE audit SET body = replace(body, '\"ann\"', '\"bob\"') WHERE sequence = 7",),
            [(FindingKind.ALTERED, 7)],
        ),
        (("DELETE FROM audit WHERE sequence IN (3, 4)",), [(FindingKind.MISSING, 3)]),
        (
            (
                "UPDATE audit SET sequence = 100 WHERE sequence = 3",
                "UPDATE audit SET sequence = 3 WHERE sequence = 4",
                "UPDATE audit SET sequence = 4 WHERE sequence = 100",
            ),
            [(FindingKind.REORDERED, 3), (FindingKind.REORDERED, 4)],
        ),
        (
            ("UPDATE integrations SET record = replace(record, 'Acme', 'Evil') WHERE id = 'acme'",),
            [(FindingKind.RECORD_ALTERED, 8)],
        ),
        (
            (
                "UPDATE integrations SET status = 'active', record ="
                ' replace(record, \'"status":"suspended"\', \'"status":"active"\') WHERE id = \'acme\'',
            ),
            [(FindingKind.RECORD_ALTERED, 8)],
        ),
        (("DELETE FROM integrations WHERE id = 'gone'",), [(FindingKind.RECORD_ALTERED, 9)]),
        (
            ("UPDATE administrators SET record = replace(record, 'auditor', 'admin') WHERE id = 'audrey'",),
            [(FindingKind.RECORD_ALTERED, 5)],
        ),
    ],
)
def test_verify__finds_what_the_owner_of_the_file_did(
    harness: RegistryHarness,
    intruder: sqlite3.Connection,
    statements: tuple[str, ...],
    expected: list[tuple[FindingKind, int]],
) -> None:
    """With the guards out of the way, entries and records that were altered, removed or moved are named."""
    assert findings(harness) == []
    intruder.execute("PRAGMA foreign_keys = OFF")
    unguarded(intruder, *statements)
    named = findings(harness)
    kinds = {kind for kind, _ in expected}
    assert [finding for finding in named if finding[0] in kinds] == expected


@pytest.mark.parametrize(
    ("entry", "was", "becomes"),
    [
        (7, b"key leaked", b"kay leaked"),
        (6, b'"request_id"', b'"request_id}'),
        (10, b'"sequence":10', b'"sequence":1['),
    ],
)
def test_verify__finds_bytes_that_were_changed_on_disk(
    harness: RegistryHarness, entry: int, was: bytes, becomes: bytes
) -> None:
    """A hexadecimal editor passes every guard; the entry is named, be it JSON any more or not."""
    assert isinstance(harness.backend, SqliteBackend)
    body = (
        harness.run(harness.registry.audit(AuditQuery(after=str(entry - 1), limit=1)))
        .entries[0]
        .body.encode()
    )
    assert was in body
    harness.run(harness.registry.aclose())
    path = harness.backend.path
    content = path.read_bytes()
    assert content.count(body) == 1
    path.write_bytes(content.replace(body, body.replace(was, becomes)))
    harness.registry = harness.run(harness.backend.open())
    assert (FindingKind.ALTERED, entry) in findings(harness)
    if entry == 10:  # nothing may be built on a head that is broken
        with pytest.raises(RegistryDamagedError):
            harness.apply(create("more"))


def test_verify__finds_a_record_that_was_put_back(
    harness: RegistryHarness, intruder: sqlite3.Connection
) -> None:
    """Undoing a suspension by putting the older record back is found by the trail that it left."""
    older = intruder.execute(
        "SELECT status, generation, sequence, search, record FROM integrations"
    ).fetchone()
    harness.apply(c.Suspend(integration_id=ID, reason="again"), BOB)
    intruder.execute("PRAGMA foreign_keys = OFF")
    unguarded(intruder)
    intruder.execute(
        "UPDATE integrations SET status = ?, generation = ?, sequence = ?, search = ?, record = ?"
        " WHERE id = 'acme'",
        older,
    )
    (finding,) = found(harness)
    assert finding.kind is FindingKind.RECORD_ALTERED
    assert "reset to an earlier state" in finding.message


def test_verify__finds_a_cut_off_end_by_the_records(
    harness: RegistryHarness, intruder: sqlite3.Connection
) -> None:
    """Removing the latest entries leaves records that point beyond the chain, even without an anchor."""
    intruder.execute("PRAGMA foreign_keys = OFF")
    last = parse_entry(
        harness.run(harness.registry.audit(AuditQuery(newest_first=True, limit=1))).entries[0].body
    )
    unguarded(intruder, "DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)")
    assert findings(harness) == [(FindingKind.RECORD_ALTERED, last.sequence)]

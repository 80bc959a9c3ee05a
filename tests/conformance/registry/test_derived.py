"""Verification recomputes everything that a store derives: what is changed in it is named."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.domain.administrators import RemoveAdministrator
from sidecar.domain.audit import FindingKind
from sidecar.domain.lifecycle import commands as c
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.registry.redis.keys import HOME, RegistryKeys
from sidecar.stores.registry.redis.nodes import Nodes
from sidecar.stores.registry.verification import verify_registry
from tests.administration import ANN, BOB, ID, create, credential, set_up
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import RedisBackend, RegistryHarness, SqliteBackend
from tests.waiting import PATIENCE_S

OTHER = "other"
DELETED = "gone"


def populate(harness: RegistryHarness) -> None:
    """Integrations in every state, credentials that ended, a removed administrator."""
    harness.apply(set_up())
    harness.apply(create(OTHER))
    harness.apply(create(DELETED))
    harness.apply(c.DeleteIntegration(integration_id=DELETED, reason="unused"))
    harness.apply(c.Suspend(integration_id=ID, reason="leak"), BOB)
    harness.apply(c.IssueCredential(integration_id=ID, credential=credential("new")), ANN)
    harness.administer(RemoveAdministrator(administrator_id="cat"))


def problems(harness: RegistryHarness) -> list[str]:
    """What a verification says."""
    found = harness.run(verify_registry(harness.registry)).findings
    assert {finding.kind for finding in found} <= {FindingKind.DERIVED_ALTERED}
    return [finding.message for finding in found]


def test_derived__is_whole(harness: RegistryHarness) -> None:
    """Nothing is found where nothing was changed, in any store."""
    populate(harness)
    assert problems(harness) == []


@pytest.fixture
def in_sqlite(tmp_path: Path, clock: ManualClock, runner: asyncio.Runner) -> Iterator[RegistryHarness]:
    """A populated registry in SQLite."""
    made = RegistryHarness(SqliteBackend(tmp_path, clock), clock, runner)
    populate(made)
    yield made
    made.run(made.registry.aclose())


SQLITE_CHANGES = (
    (
        "UPDATE integrations SET status = 'deleted' WHERE id = 'other'",
        r"integration:other: it is stored as deleted",
    ),
    (
        "UPDATE integrations SET status = 'active' WHERE id = 'gone'",
        r"integration:gone: it is stored as not deleted",
    ),
    ("UPDATE integrations SET status = 'active' WHERE id = 'acme'", r"its stored status is 'active'"),
    ("UPDATE integrations SET search = '' WHERE id = 'other'", r"integration:other: its search text differs"),
    ("UPDATE integrations SET generation = 9 WHERE id = 'other'", r"its stored generation is 9"),
    ("DELETE FROM credential_ids WHERE id = 'new'", r"the claim of id new by integration:acme is missing"),
    (
        "UPDATE credential_ids SET integration_id = 'other' WHERE id = 'new'",
        r"id new (.* says other in generation|has no owner)",
    ),
    ("UPDATE credential_ids SET generation = 1 WHERE id = 'new'", r"id new .* says acme in generation 1"),
    ("INSERT INTO credential_ids VALUES ('mine', 'nobody', 1)", r"the claim of id mine has no owner"),
    (
        "DELETE FROM token_ids WHERE administrator_id = 'cat'",
        r"the claim of id tokencat by administrator:cat is",
    ),
    ("UPDATE token_ids SET administrator_id = 'ann' WHERE id = 'tokenbob'", r"id tokenbob .* says ann"),
    ("INSERT INTO token_ids VALUES ('mine', 'nobody')", r"the claim of id mine has no owner"),
    ("INSERT INTO webhook_secrets VALUES ('other', 'w1', 'x')", r"webhook secret w1 is left over"),
    ("DROP INDEX integrations_status", r"the index integrations_status is missing"),
    ("CREATE TABLE theirs (a)", r"the table theirs is not part of the schema"),
)


@pytest.mark.parametrize(("statement", "reported"), SQLITE_CHANGES)
def test_derived__in_sqlite(in_sqlite: RegistryHarness, statement: str, reported: str) -> None:
    """Each derived column, table and guard."""
    assert isinstance(in_sqlite.backend, SqliteBackend)
    with closing(sqlite3.connect(in_sqlite.backend.path, isolation_level=None)) as intruder:
        guards = intruder.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            intruder.execute(f"DROP TRIGGER {name}")
        assert any("the trigger" in problem and "is missing" in problem for problem in problems(in_sqlite))
        intruder.execute("PRAGMA foreign_keys = OFF")
        intruder.execute("PRAGMA ignore_check_constraints = ON")
        intruder.execute(statement)
        for _, sql in guards:
            intruder.execute(sql)
    found = problems(in_sqlite)
    assert found
    assert all(re.search(reported, problem) for problem in found)


@pytest.fixture(params=["standalone", "cluster"])
def in_redis(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock, runner: asyncio.Runner
) -> Iterator[RegistryHarness]:
    """A populated registry in Redis."""
    made = RegistryHarness(RedisBackend(request.param, tmp_path, clock), clock, runner)
    populate(made)
    yield made
    made.run(made.registry.aclose())


Change = Callable[[RegistryKeys], tuple[int, tuple[str | int, ...]]]


def at(name: str, *words: str | int, of: str = "", key: str = "") -> Change:
    """A command on a key of integration *of*, or on one that there is once in the partition of *key*."""

    def made(keys: RegistryKeys) -> tuple[int, tuple[str | int, ...]]:
        owner = of or key
        partition = keys.partition_of(owner) if owner else HOME
        place = keys.of(of, words[0]) if of else keys.named(partition, str(words[0]))  # type: ignore[arg-type]
        return partition, (name, place, *words[1:])

    return made


def index(name: str, subject: str, member: str) -> Change:
    """A command on an index of the log."""

    def made(keys: RegistryKeys) -> tuple[int, tuple[str | int, ...]]:
        partition = keys.partition_of(subject.partition(":")[2])
        return partition, (name, keys.index(partition, "subject", subject), member)

    return made


REDIS_CHANGES = {
    "ids": (at("ZREM", "ids", OTHER, key=OTHER), r"integration:other: 'ids' lacks the integration"),
    "ids of a deleted one": (
        at("ZADD", "ids", 0, DELETED, key=DELETED),
        r"'ids' lists the integration, although it is deleted",
    ),
    "ids of nobody": (at("ZADD", "ids", 0, "ghost", key=OTHER), r"'ids' lists 'ghost', which has no record"),
    "changes": (at("ZADD", "changes", 999, OTHER, key=OTHER), r"'changes' lists sequence 999"),
    "changes of nobody": (at("ZADD", "changes", 1, "ghost", key=OTHER), r"'changes' lists 'ghost'|ghost"),
    "status": (at("HSET", "r", "status", "active", of=ID), r"its stored status is 'active'"),
    "search": (at("HSET", "r", "search", "", of=OTHER), r"its search text differs"),
    "generation": (at("SET", "g", 9, of=OTHER), r"its stored generation is 9"),
    "no generation": (at("DEL", "g", of=OTHER), r"its stored generation is None"),
    "issued": (at("HDEL", "k", "new", of=ID), r"the claim of id new by integration:acme is missing"),
    "issued earlier": (at("HSET", "k", "new", 1, of=ID), r"the claim of id new .* says generation 1"),
    "claim": (at("SET", "c", OTHER, of="new"), r"the claim of id new by integration:acme says other"),
    "no claim": (at("DEL", "c", of="new"), r"the claim of id new by integration:acme is missing"),
    "token": (at("HDEL", "tokens", "tokencat"), r"the claim of id tokencat by administrator:cat is missing"),
    "token of another": (
        at("HSET", "tokens", "tokenbob", "ann"),
        r"id tokenbob by administrator:bob says ann",
    ),
    "token of nobody": (at("HSET", "tokens", "mine", "nobody"), r"the claim of id mine has no owner"),
    "secret": (at("HSET", "w", "w1", "x", of=OTHER), r"webhook secret w1 is left over"),
    "epoch": (at("SET", "epoch", 999, key=OTHER), r"'epoch' is 999, later than any change"),
    "admins-at": (at("HSET", "admins-at", "bob", 1), r"administrator:bob"),
}


@pytest.mark.parametrize("name", REDIS_CHANGES)
def test_derived__in_redis(in_redis: RegistryHarness, name: str) -> None:
    """Each derived key of the registry."""
    change, reported = REDIS_CHANGES[name]
    tamper(in_redis, change)
    found = [finding.message for finding in in_redis.run(verify_registry(in_redis.registry)).findings]
    assert found
    assert all(re.search(reported, problem) for problem in found)


@pytest.mark.parametrize("filtered", ["subject", "actor", "action"])
def test_derived__an_index_of_the_log(in_redis: RegistryHarness, filtered: str) -> None:
    """An entry that was taken out of an index is missing in filtered pages, and named."""

    def change(keys: RegistryKeys) -> tuple[int, tuple[str | int, ...]]:
        value = {"subject": f"integration:{ID}", "actor": "bob", "action": "integration.suspend"}[filtered]
        partition = keys.partition_of(ID)
        return partition, ("DEL", keys.index(partition, filtered, value))

    tamper(in_redis, change)
    found = problems(in_redis)
    assert found
    assert all(f"the index of {filtered} " in problem and "lacks the entry" in problem for problem in found)


def test_derived__a_status_that_hides(in_redis: RegistryHarness) -> None:
    """An integration that is marked as deleted vanishes from lists and snapshots; the log knows better."""
    tamper(in_redis, at("HSET", "r", "status", "deleted", of=OTHER))
    assert any("integration:other: it is stored as deleted" in problem for problem in problems(in_redis))


def tamper(harness: RegistryHarness, change: Change) -> None:
    """Carry out a command around the registry's rules."""
    assert isinstance(harness.backend, RedisBackend)
    url = harness.backend.url

    async def carried_out() -> None:
        space = KeySpace(url.prefix, url.partitions)
        nodes = Nodes(url, space)
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        await nodes.learn_layout(deadline_s)  # the number of partitions is the stored one
        partition, command = change(RegistryKeys(space))
        await nodes.run(partition, [command], deadline_s)
        await nodes.close()

    harness.run(carried_out())

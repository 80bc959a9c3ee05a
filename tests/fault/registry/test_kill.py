"""Kill -9 while a process writes to the registry: a change is whole or absent, and the chain verifies."""

from __future__ import annotations

import asyncio
import json
import re
import selectors
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from sidecar.domain.changes import Revision
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.sqlite.file import connect, open_database
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.verification import verify_registry
from tests.administration import LIFECYCLE, create, request
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import found
from tests.fault.registry.victim import OPEN
from tests.fault.registry.writes import KEYED, WRITES, Write
from tests.waiting import PATIENCE_S

VALUE = re.compile(r"'(?:[^']|'')*'|x'[0-9a-f]*'|\b\d+\b|NULL")
READING = re.compile(r"\s*(SELECT|PRAGMA)")
STATEMENTS_MAX = 400
"""A write with more statements than this is not what it was."""


def line_from(stream: IO[bytes]) -> str:
    """The next line of another process, within a deadline."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        assert selector.select(PATIENCE_S), "the other process says nothing"
    line = stream.readline().decode()
    assert line, "the other process has ended"
    return line


@pytest.fixture(scope="module")
def kill_before() -> Iterator[Callable[[Path, str, int], bool]]:
    """Makes a write in a separate process that is killed before its n-th statement; False = it lived."""
    program = [sys.executable, "-m", "tests.fault.registry.victim"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(path: Path, name: str, statement: int) -> bool:
            job = {"path": str(path), "name": name, "statement": statement}
            stdin.write(json.dumps(job).encode() + b"\n")
            return bool(json.loads(line_from(stdout)))

        yield ask
        stdin.close()
        assert process.wait(PATIENCE_S) == 0


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for a test."""
    with asyncio.Runner() as runner:
        yield runner


class Content(NamedTuple):
    """Everything that a registry promises to keep, row by row."""

    tables: dict[str, list[tuple[object, ...]]]
    entries: int


LASTING_TABLES = (
    "audit",
    "integrations",
    "credential_ids",
    "webhook_secrets",
    "administrators",
    "token_ids",
    "idempotency",
)


def content(path: Path) -> Content:
    """What the registry at *path* holds, once SQLite has recovered it and found it sound."""
    with closing(open_database(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = {
            name: database.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()  # noqa: S608
            for name in LASTING_TABLES
        }
    return Content(tables, len(tables["audit"]))


async def with_registry(path: Path, work: Write) -> object:
    """Do *work* on the registry at *path*."""
    registry = await SqliteRegistry.open(path, LIFECYCLE, clock_us=ManualClock())
    try:
        return await work(registry)
    finally:
        await registry.aclose()


async def verified(registry: Registry) -> bool:
    """Whether the whole registry verifies."""
    return (await verify_registry(registry)).is_intact


def copied(source: Path, target: Path) -> Path:
    """A copy of a closed registry file, as nobody has ever opened it."""
    for path in target.parent.glob(f"{target.name}*"):
        path.unlink()
    shutil.copy(source, target)
    target.chmod(0o600)
    return target


KILLED = (
    "integration.create", "integration.edit", "integration.delete", "integration.suspend",
    "credential.issue", "webhook_secret.rotate", "admin.create", "admin.set_role", "admin.issue_token",
    "admin.revoke_token", "decisions.export", "admin.bootstrap", "apply_many", "record_uses", "announce",
)  # fmt: skip
"""Writes that run every sequence of statements that there is."""


async def statements_of(path: Path, name: str) -> tuple[str, ...]:
    """The statements of one write that change something, without values."""
    run: list[str] = []

    def traced(path: Path) -> sqlite3.Connection:
        database = connect(path)
        database.set_trace_callback(run.append)
        return database

    registry = await SqliteRegistry.open(path, LIFECYCLE, clock_us=ManualClock(), connect=traced)
    prepare, write = WRITES[name]
    await prepare(registry)
    run.clear()
    await write(registry)
    written = tuple(VALUE.sub("?", statement) for statement in run if not READING.match(statement))
    await registry.aclose()
    return written


def test_kill__every_write_runs_statements_of_one_that_is_killed(
    tmp_path: Path, runner: asyncio.Runner
) -> None:
    """What holds for the writes that are killed at every statement holds for all."""
    run = {name: runner.run(statements_of(tmp_path / name, name)) for name in WRITES}
    killed = {run[name] for name in KILLED}
    assert [name for name in WRITES if run[name] not in killed] == []


@pytest.mark.parametrize("name", KILLED)
def test_kill__at_every_statement_of_a_write(
    name: str, tmp_path: Path, runner: asyncio.Runner, kill_before: Callable[[Path, str, int], bool]
) -> None:
    """A process killed before any one statement of a write leaves all of it, or the registry as it was."""
    prepared, written = tmp_path / "prepared.db", tmp_path / "written.db"
    prepare, write = WRITES[name]
    runner.run(with_registry(prepared, prepare))
    copied(prepared, written)
    runner.run(with_registry(written, write))
    assert runner.run(with_registry(prepared, verified))
    assert runner.run(with_registry(written, verified))
    before, after = content(prepared), content(written)
    seen = []
    for statement in range(1, STATEMENTS_MAX):
        path = copied(prepared, tmp_path / "killed.db")
        was_killed = kill_before(path, name, statement)
        left = content(path)
        assert left in (before, after)
        seen.append(left)
        if not was_killed:
            break
    else:
        pytest.fail("the write never ended")
    assert len(seen) > 3, "no statement of the write was seen"
    assert seen[0] == before
    assert seen[-1] == after
    # Nothing, then all: no later death undoes what an earlier one would have left.
    assert seen == sorted(seen, key=lambda one: one.entries)


def test_kill__while_a_new_registry_is_made(
    tmp_path: Path, runner: asyncio.Runner, kill_before: Callable[[Path, str, int], bool]
) -> None:
    """A process killed while it makes the tables leaves a file that the next one can open and use."""
    statement = 0
    was_killed = True
    while was_killed:
        statement += 1
        path = tmp_path / f"new{statement}.db"
        was_killed = kill_before(path, OPEN, statement)

        async def use(registry: Registry) -> None:
            await found(registry, ManualClock())
            await registry.apply(request(create()))
            assert await verified(registry)

        runner.run(with_registry(path, use))
    assert statement > 40, "no table was seen being made"


@pytest.mark.parametrize(
    "name", ["integration.create", "integration.suspend", "credential.rotate", "apply_many"]
)
def test_power_cut__at_every_piece_of_the_log(name: str, tmp_path: Path, runner: asyncio.Runner) -> None:
    """However little of the write-ahead log reached the disk, the write is there as a whole or not at all."""
    prepare, write = WRITES[name]
    path = tmp_path / "registry.db"
    runner.run(with_registry(path, prepare))
    before = content(path)
    file, log = images(path, runner, write)
    assert len(log) > 2 * 4096
    outcomes = []
    for end in range(0, len(log) + 512, 512):
        for image in (log[:end], flipped(log[:end])):
            left, is_intact = recovered(tmp_path, runner, file, image)
            assert is_intact
            outcomes.append(left)
    assert outcomes[0] == before
    assert outcomes[-2].entries > before.entries
    assert {left.entries for left in outcomes} == {before.entries, outcomes[-2].entries}


def images(path: Path, runner: asyncio.Runner, write: Write) -> tuple[bytes, bytes]:
    """The file and its log after *write*, with nothing folded back yet."""
    with closing(connect(path)) as reader:  # a second handle keeps the log from being folded at the end
        reader.execute("SELECT 1 FROM audit").fetchall()
        runner.run(with_registry(path, write))
        return path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()


def flipped(image: bytes) -> bytes:
    """*image* with one bit of its last piece wrong, as a torn write leaves it."""
    return image[:-100] + bytes([image[-100] ^ 1]) + image[-99:] if len(image) > 100 else image


def recovered(tmp_path: Path, runner: asyncio.Runner, file: bytes, log: bytes) -> tuple[Content, bool]:
    """What is left of a file and a log, and whether it verifies."""
    path = tmp_path / "cut" / "registry.db"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    path.write_bytes(file)
    path.chmod(0o600)
    path.with_name(f"{path.name}-wal").write_bytes(log)
    return content(path), bool(runner.run(with_registry(path, verified)))


@pytest.mark.parametrize("acknowledged", [1, 2, 7, 19])
def test_kill__what_was_acknowledged_is_there(
    acknowledged: int, tmp_path: Path, runner: asyncio.Runner
) -> None:
    """Of two writers one is killed at some moment: the other goes on, and no confirmed change is lost."""
    path = tmp_path / "registry.db"

    async def prepare(registry: Registry) -> None:
        await found(registry, ManualClock())
        for name in ("left", "right"):
            await registry.apply(request(create(name)))

    runner.run(with_registry(path, prepare))
    program = [sys.executable, "-m", "tests.fault.registry.writer", str(path)]
    with (
        subprocess.Popen([*program, "left"], stdout=subprocess.PIPE, bufsize=0) as left,
        subprocess.Popen([*program, "right"], stdout=subprocess.PIPE, bufsize=0) as right,
    ):
        assert left.stdout is not None and right.stdout is not None
        for _ in range(acknowledged):
            last_left = int(line_from(left.stdout))
        left.kill()
        left.wait(PATIENCE_S)
        for _ in range(acknowledged):
            last_right = int(line_from(right.stdout))
        right.kill()
        right.wait(PATIENCE_S)

    async def look(registry: Registry) -> None:
        for name, last in (("left", last_left), ("right", last_right)):
            record = await registry.get(name)
            assert record is not None
            assert record.generation >= last
        assert await verified(registry)
        assert await registry.revision() != Revision((0,))

    runner.run(with_registry(path, look))


def test_kill__a_repeat_after_the_crash_makes_the_change_once(
    tmp_path: Path, runner: asyncio.Runner, kill_before: Callable[[Path, str, int], bool]
) -> None:
    """A caller that got no answer repeats under its idempotency key, and the change is there exactly once."""
    prepared = tmp_path / "prepared.db"
    prepare, write = WRITES["credential.issue"]
    runner.run(with_registry(prepared, prepare))
    before = content(prepared).entries
    assert KEYED["idempotency_key"]
    for statement in range(1, STATEMENTS_MAX):
        path = copied(prepared, tmp_path / "killed.db")
        was_killed = kill_before(path, "credential.issue", statement)
        runner.run(with_registry(path, write))
        assert content(path).entries == before + 1
        if not was_killed:
            break

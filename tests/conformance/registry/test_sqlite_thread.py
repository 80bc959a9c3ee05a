"""The thread in front of the registry's file: bounds, deadlines, shared commits, and failures of the file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest

from sidecar.domain.changes import Committed, Revision
from sidecar.domain.refusals import InvalidError, RefusedError
from sidecar.stores.registry import base
from sidecar.stores.registry.protocol import (
    RegistryClosedError,
    RegistryDamagedError,
    RegistryError,
    RegistryOverloadedError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from sidecar.stores.registry.sqlite.file import connect, open_database
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.sqlite.thread import BATCH_MAX, SqliteThread
from sidecar.stores.registry.sqlite.transactions import Durability
from tests.administration import ID, LIFECYCLE, create, request
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import found
from tests.waiting import PATIENCE_S

QUEUE_MAX = 4


class Gate:
    """Work that holds the thread up until it is let go."""

    def __init__(self) -> None:
        """Closed."""
        self.entered = threading.Event()
        self._opened = threading.Event()

    def __call__(self, database: sqlite3.Connection) -> str:
        """Wait to be let go."""
        self.entered.set()
        assert self._opened.wait(PATIENCE_S)
        return "through"

    def open(self) -> None:
        """Let go."""
        self._opened.set()

    async def until_entered(self) -> None:
        """Wait, beside the event loop, until the thread is held up."""
        assert await asyncio.to_thread(self.entered.wait, PATIENCE_S)


@asynccontextmanager
async def running(tmp_path: Path, **given: int) -> AsyncIterator[SqliteThread]:
    """A thread on a fresh registry file."""
    thread = SqliteThread(
        partial(open_database, tmp_path / "registry.db"), lambda: None, **{"queue_max": QUEUE_MAX, **given}
    )
    await thread.start()
    yield thread
    await thread.close(PATIENCE_S)


def one(database: sqlite3.Connection) -> int:
    """The smallest work."""
    return int(database.execute("SELECT 1").fetchone()[0])


def put(number: int, database: sqlite3.Connection) -> int:
    """Write something that can be counted."""
    database.execute("INSERT INTO sidecars (id, revision, seen_at_us) VALUES (?, '0', 0)", (str(number),))
    return number


def count(database: sqlite3.Connection) -> int:
    """What `put` wrote."""
    return int(database.execute("SELECT count(*) FROM sidecars").fetchone()[0])


async def test_call__the_queue_is_bounded(tmp_path: Path) -> None:
    """More calls than may wait are refused at once; those that wait are answered in the end."""
    async with running(tmp_path) as thread:
        gate = Gate()
        held = asyncio.create_task(thread.call(gate, Durability.READ, PATIENCE_S))
        await gate.until_entered()
        waiting = [
            asyncio.create_task(thread.call(one, Durability.READ, PATIENCE_S)) for _ in range(QUEUE_MAX)
        ]
        await asyncio.sleep(0)
        with pytest.raises(RegistryOverloadedError):
            await thread.call(one, Durability.READ, PATIENCE_S)
        gate.open()
        assert await held == "through"
        assert await asyncio.gather(*waiting) == [1] * QUEUE_MAX


async def test_call__deadline_and_whether_it_may_have_happened(tmp_path: Path) -> None:
    """A call that had begun may have happened if it writes; one that only waited never did and never will."""
    async with running(tmp_path) as thread:
        gate = Gate()

        def held_write(database: sqlite3.Connection) -> None:
            put(1, database)
            gate(database)

        begun = asyncio.create_task(thread.call(held_write, Durability.LASTING, 0.05))
        await gate.until_entered()
        waiting = asyncio.create_task(thread.call(partial(put, 2), Durability.LASTING, 0.01))
        for task, may_have_happened in ((begun, True), (waiting, False)):
            with pytest.raises(RegistryTimeoutError) as caught:
                await task
            assert caught.value.may_have_happened is may_have_happened
        gate.open()
        assert await thread.call(count, Durability.READ, PATIENCE_S) == 1


async def test_call__cancelled_while_waiting_is_not_made(tmp_path: Path) -> None:
    """A caller that went away before its turn leaves nothing behind."""
    async with running(tmp_path) as thread:
        gate = Gate()
        held = asyncio.create_task(thread.call(gate, Durability.READ, PATIENCE_S))
        await gate.until_entered()
        gone = asyncio.create_task(thread.call(partial(put, 1), Durability.LASTING, PATIENCE_S))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        gate.open()
        await held
        assert await thread.call(count, Durability.READ, PATIENCE_S) == 0


async def test_call__the_loop_turns_while_the_thread_is_held_up(tmp_path: Path) -> None:
    """Whatever the file does, the event loop answers others."""
    async with running(tmp_path) as thread:
        gate = Gate()
        held = asyncio.create_task(thread.call(gate, Durability.READ, PATIENCE_S))
        await gate.until_entered()
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert not held.done()
        gate.open()
        await held


def commits_of(tmp_path: Path, runner: asyncio.Runner, writes: int) -> tuple[int, int]:
    """How many transactions *writes* that wait together took, and how many were made."""
    statements: list[str] = []

    def traced(path: Path) -> sqlite3.Connection:
        database = connect(path)
        database.set_trace_callback(statements.append)
        return database

    async def scenario() -> int:
        thread = SqliteThread(
            partial(open_database, tmp_path / "registry.db", traced), lambda: None, queue_max=writes
        )
        await thread.start()
        gate = Gate()
        held = asyncio.create_task(thread.call(gate, Durability.READ, PATIENCE_S))
        await gate.until_entered()
        waiting = [
            asyncio.create_task(thread.call(partial(put, number), Durability.LASTING, PATIENCE_S))
            for number in range(writes)
        ]
        await asyncio.sleep(0)
        statements.clear()
        gate.open()
        await held
        assert await asyncio.gather(*waiting) == list(range(writes))
        made = await thread.call(count, Durability.READ, PATIENCE_S)
        await thread.close(PATIENCE_S)
        return made

    made = runner.run(scenario())
    return statements.count("COMMIT"), made


@pytest.mark.parametrize(
    ("writes", "commits"), [(1, 1), (BATCH_MAX, 1), (BATCH_MAX + 1, 2), (3 * BATCH_MAX, 3)]
)
def test_write__those_that_wait_together_share_a_commit(
    tmp_path: Path, runner: asyncio.Runner, writes: int, commits: int
) -> None:
    """One transaction, and so one sync of the disk, for up to `BATCH_MAX` writes."""
    assert commits_of(tmp_path, runner, writes) == (commits, writes)


async def test_write__one_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    """In a shared transaction a refusal, a guard and a fault of the program undo their own work alone."""

    def refuse(database: sqlite3.Connection) -> None:
        put(90, database)
        LIFECYCLE.apply(None, create("BAD ID"), request(create()).actor, 0)

    def guarded(database: sqlite3.Connection) -> None:
        put(91, database)
        database.execute("DELETE FROM audit")
        put(91, database)

    def faulty(database: sqlite3.Connection) -> None:
        put(92, database)
        raise ZeroDivisionError

    async with running(tmp_path) as thread:
        gate = Gate()
        held = asyncio.create_task(thread.call(gate, Durability.READ, PATIENCE_S))
        await gate.until_entered()
        works: list[Callable[[sqlite3.Connection], object]] = [refuse, guarded, faulty, partial(put, 1)]
        waiting = [asyncio.create_task(thread.call(work, Durability.LASTING, PATIENCE_S)) for work in works]
        await asyncio.sleep(0)
        gate.open()
        await held
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[:3]] == [
            InvalidError,
            RegistryDamagedError,
            ZeroDivisionError,
        ]
        assert outcomes[3] == 1
        assert await thread.call(count, Durability.READ, PATIENCE_S) == 1


async def test_write__a_locked_file_is_reported_and_waits_no_longer_than_its_bound(tmp_path: Path) -> None:
    """Another process that holds the file makes the change fail whole; once it lets go, changes go on."""

    def impatient(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=0.01, isolation_level=None)

    clock = ManualClock()
    path = tmp_path / "registry.db"
    registry = await SqliteRegistry.open(path, LIFECYCLE, clock_us=clock, connect=impatient)
    await found(registry, clock)
    with closing(connect(path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryUnavailableError, match="locked") as caught:
            await registry.apply(request(create()))
        assert not caught.value.may_have_happened
        assert await registry.get(ID) is None  # readers are never held up
        holder.execute("ROLLBACK")
    assert isinstance(await registry.apply(request(create())), Committed)
    await registry.aclose()


async def test_write__a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """When there is no room every change fails whole, and reading goes on."""
    clock = ManualClock()
    made: list[sqlite3.Connection] = []

    def kept(path: Path) -> sqlite3.Connection:
        made.append(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
        return made[-1]

    registry = await SqliteRegistry.open(tmp_path / "registry.db", LIFECYCLE, clock_us=clock, connect=kept)
    await found(registry, clock)
    revision = await registry.revision()
    made[-1].execute("PRAGMA max_page_count = 1")  # SQLite takes it as: no page more than there are
    outcomes = await asyncio.gather(
        *(registry.apply(request(create(f"i{n}", contact="x" * 200))) for n in range(200)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, (Committed, RegistryUnavailableError)) for outcome in outcomes)
    assert any(
        isinstance(outcome, RegistryUnavailableError) and "full" in str(outcome) for outcome in outcomes
    )
    assert (await registry.revision()).sequences[0] == revision.sequences[0] + sum(
        isinstance(outcome, Committed) for outcome in outcomes
    )
    await registry.aclose()


async def test_close__calls_that_wait_are_answered_and_later_ones_refused(tmp_path: Path) -> None:
    """Closing finishes what was begun."""
    thread = SqliteThread(partial(open_database, tmp_path / "registry.db"), lambda: None)
    await thread.start()
    gate = Gate()
    held = asyncio.create_task(thread.call(gate, Durability.READ, PATIENCE_S))
    await gate.until_entered()
    waiting = asyncio.create_task(thread.call(partial(put, 1), Durability.LASTING, PATIENCE_S))
    await asyncio.sleep(0)
    closing_ = asyncio.create_task(thread.close(PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(RegistryClosedError):
        await thread.call(one, Durability.READ, PATIENCE_S)
    gate.open()
    assert await held == "through"
    assert await waiting == 1
    await closing_
    await thread.close(PATIENCE_S)


async def test_close__wakes_whoever_waits_for_changes(tmp_path: Path) -> None:
    """A reader that follows the registry ends when the registry is closed, and is not left hanging."""
    registry = await SqliteRegistry.open(tmp_path / "registry.db", LIFECYCLE, poll_interval_s=0.002)
    revision = await registry.revision()
    waiting = asyncio.create_task(registry.changes_since(revision, PATIENCE_S))
    await registry.revision()
    await registry.aclose()
    with pytest.raises(RegistryClosedError):
        await waiting


async def test_watchers__are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of calls that wait for changes is bounded; further ones are refused at once."""
    monkeypatch.setattr(base, "WATCHERS_MAX", 2)

    registry = await SqliteRegistry.open(tmp_path / "registry.db", LIFECYCLE)
    revision = await registry.revision()
    waiting = [asyncio.create_task(registry.changes_since(revision, PATIENCE_S)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RegistryOverloadedError):
        await registry.changes_since(revision, PATIENCE_S)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await registry.changes_since(revision)).revision == Revision((0,))
    await registry.aclose()


async def test_thread__that_died_leaves_nobody_waiting(tmp_path: Path) -> None:
    """If the file is taken away from the thread, waiting calls fail at once and later ones are refused."""
    opened: list[sqlite3.Connection] = []

    def kept() -> sqlite3.Connection:
        opened.append(open_database(tmp_path / "registry.db"))
        return opened[-1]

    thread = SqliteThread(kept, lambda: None)
    await thread.start()

    def close_under_it(database: sqlite3.Connection) -> None:
        database.close()

    with pytest.raises(RegistryError):
        await thread.call(close_under_it, Durability.READ, PATIENCE_S)
    with pytest.raises(RegistryError):
        await thread.call(one, Durability.READ, PATIENCE_S)
    await thread.close(PATIENCE_S)


def test_refusal__is_no_registry_error() -> None:
    """What an administrator did wrong and what the store failed at are distinguished by type."""
    assert not issubclass(RefusedError, RegistryError)

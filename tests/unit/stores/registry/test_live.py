"""The live view of a registry: loaded, followed, fetched; and what holds while the registry is silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain.changes import Position, Revision
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.snapshot import CompiledIntegration
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry import live
from sidecar.stores.registry.live import REFRESHES_MAX, SMALL_CHANGE_MAX, LiveOptions, LiveRegistry
from sidecar.stores.registry.protocol import Changes, RegistryUnavailableError
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import ID, LIFECYCLE, SECOND_US, create, request
from tests.building import ManualClock, make_metrics
from tests.conformance.registry.registry_harness import found
from tests.waiting import PATIENCE_S, until

AWAY = RegistryUnavailableError("the store is away")


class Hindered:
    """A real registry whose answers a test can delay or replace; it records the calls."""

    def __init__(self, registry: SqliteRegistry) -> None:
        """Pass everything on."""
        self.real = registry
        self.asked: list[str] = []
        self.answered: list[str] = []
        """What was answered, and is held back."""
        self.fault: Exception | None = None
        self.held: dict[str, asyncio.Event] = {}
        self.says_reset = False
        self.older: Integration | None = None
        """What the store holds of the one integration, having lost what came later."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """The method of the registry, once nothing holds it up; an answer that is held back was true then."""
        method = getattr(self.real, name)

        async def call(*arguments: Any) -> Any:
            self.asked.append(name)
            if self.fault is not None:
                raise self.fault
            if name == "changes_since" and self.says_reset:
                self.says_reset = False
                return Changes(arguments[0], is_reset=True)
            answer = await method(*arguments)
            if self.older is not None and name == "load_all":
                answer = answer._replace(records=(self.older,))
            if self.older is not None and name == "get":
                answer = self.older
            if name in self.held:
                self.answered.append(name)
                await self.held[name].wait()
            return answer

        return call


class LiveHarness:
    """A registry, its live view, and what that has shown."""

    def __init__(self, registry: SqliteRegistry, clock: ManualClock, pace_s: float) -> None:
        """Nothing runs yet."""
        self.registry = Hindered(registry)
        self.clock = clock
        self.metrics = make_metrics()
        self.retired: list[CompiledIntegration] = []
        self.beside = 0
        options = LiveOptions(
            "sidecar-1",
            retry_first_s=0.001,
            run_in_thread=self.work_beside,
            clock_us=clock,
            pace_s=pace_s,
            jitter=lambda: 1.0,
        )
        self.live = LiveRegistry(
            self.registry,  # type: ignore[arg-type]  # what it is asked, it passes on
            lambda _, retired: self.retired.extend(retired),
            self.metrics,
            options,
        )

    async def work_beside(self, work: Callable[[], Any]) -> Any:
        """Count what is worked out beside the event loop."""
        self.beside += 1
        return await asyncio.to_thread(work)

    async def apply(self, command: c.Command) -> None:
        """Make a change past the live view."""
        await self.registry.real.apply(request(command))

    async def refreshed(self, generation: int, integration_id: str = ID) -> bool:
        """The answer to a take that found *generation* in the store; 0 = none."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.live.refresh(integration_id, generation, answer.set_result)
        return await answer

    def limit(self) -> int | None:
        """The limit in force; None = the integration is not."""
        compiled = self.live.snapshot.integrations.get(ID)
        return compiled.record.rate_limit_rpm if compiled is not None else None


@asynccontextmanager
async def harness_in(folder: Path, pace_s: float = 0.0) -> AsyncIterator[LiveHarness]:
    """A registry with people and one integration in it; nobody follows it yet."""
    clock = ManualClock()
    registry = await SqliteRegistry.open(
        folder / "registry.db", LIFECYCLE, clock_us=clock, poll_interval_s=0.002
    )
    await found(registry, clock)
    await registry.apply(request(create()))
    try:
        yield LiveHarness(registry, clock, pace_s)
    finally:
        await registry.aclose()


@asynccontextmanager
async def followed_in(folder: Path, pace_s: float = 0.0) -> AsyncIterator[LiveHarness]:
    """The same, followed: all is loaded."""
    async with harness_in(folder, pace_s) as harness:
        task = asyncio.create_task(harness.live.run())
        try:
            await until(lambda: harness.live.is_loaded)
            yield harness
        finally:
            await ended(task)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel it, and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def play(act: Coroutine[Any, Any, None]) -> None:
    """Run one test's harness, within a deadline."""
    asyncio.run(asyncio.wait_for(act, PATIENCE_S))


def test_run__waits_for_a_registry_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is in force before all was loaded; it is said once, counted each time, and ends by itself."""

    async def act() -> None:
        async with harness_in(tmp_path) as harness:
            harness.registry.fault = AWAY
            task = asyncio.create_task(harness.live.run())
            await until(lambda: harness.metrics.value("sidecar_registry_follow_failures_total") >= 3)
            assert (harness.live.is_loaded, harness.metrics.value("sidecar_registry_in_touch")) == (False, 0)
            assert not harness.metrics.value("sidecar_registry_confirmed_timestamp_seconds")
            started_s = wall_clock_us() // 1_000_000
            harness.registry.fault = None
            await until(lambda: harness.metrics.value("sidecar_registry_in_touch"))
            assert (harness.live.is_loaded, harness.limit()) == (True, 60)
            assert harness.metrics.value("sidecar_registry_confirmed_timestamp_seconds") >= started_s
            await ended(task)

    with caplog.at_level(logging.INFO):
        play(act())
    assert caplog.text.count("registry not followed") == 1
    assert caplog.text.count("registry followed again") == 1


async def test_run__what_is_in_force_stays_while_the_registry_is_away(tmp_path: Path) -> None:
    """A failure changes nothing; what changed meanwhile is in force afterwards."""
    async with followed_in(tmp_path) as harness:
        harness.registry.fault = AWAY
        harness.live.reconcile()
        await until(lambda: harness.metrics.value("sidecar_registry_follow_failures_total") >= 2)
        await harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=5))
        assert harness.limit() == 60
        harness.registry.fault = None
        await until(lambda: harness.limit() == 5)


async def test_run__another_history_is_loaded_whole(tmp_path: Path) -> None:
    """A registry that does not know this process's position is loaded again."""
    async with followed_in(tmp_path) as harness:
        harness.registry.says_reset = True
        harness.live.reconcile()
        await until(lambda: harness.metrics.value("sidecar_registry_loads_total") == 2)
        assert harness.limit() == 60


async def test_run__announces_how_far_it_has_come(tmp_path: Path) -> None:
    """After the load, and at once after a change."""
    async with followed_in(tmp_path) as harness:

        async def announced(revision: Revision) -> None:
            async def is_told() -> bool:
                sidecars = await harness.registry.real.live_sidecars()
                return [sidecar.revision for sidecar in sidecars] == [revision]

            await until(is_told)

        await announced(await harness.registry.real.revision())
        await harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=5))
        await announced(await harness.registry.real.revision())
        assert harness.limit() == 5


async def test_run__many_changes_are_compiled_beside_the_event_loop(tmp_path: Path) -> None:
    """A few are compiled at once, more of them elsewhere; all are in force together."""
    async with followed_in(tmp_path) as harness:
        loads = harness.beside
        await harness.apply(create("one"))
        await until(lambda: "one" in harness.live.snapshot.integrations)
        assert harness.beside == loads
        many = [request(create(f"many{number}")) for number in range(SMALL_CHANGE_MAX + 1)]
        await harness.registry.real.apply_many(many)
        await until(lambda: f"many{SMALL_CHANGE_MAX}" in harness.live.snapshot.integrations)
        assert harness.beside == loads + 1
        assert len(harness.live.snapshot.integrations) == SMALL_CHANGE_MAX + 3


async def test_run__changes_that_follow_each_other_closely_share_a_look(tmp_path: Path) -> None:
    """The first is in force at once; the next wait for the pace, but not a record that a take asks for."""
    async with followed_in(tmp_path, pace_s=3_600.0) as harness:
        await harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=5))
        await until(lambda: harness.limit() == 5)
        await harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=6))
        position = Position(0, (await harness.registry.real.revision()).sequences[0])
        assert not await harness.live.wait_for(position, timeout_s=0.05)
        assert harness.limit() == 5
        assert await harness.refreshed(3)
        assert harness.limit() == 6


async def test_refresh__puts_into_force_what_is_there_now(tmp_path: Path) -> None:
    """Changed, made or ended: without a push the next take applies it, and what it replaces is reported."""
    async with harness_in(tmp_path) as harness:
        assert await harness.refreshed(1)
        assert harness.limit() == 60
        await harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=5))
        assert await harness.refreshed(2)
        assert (harness.limit(), [old.record.rate_limit_rpm for old in harness.retired]) == (5, [60])
        await harness.apply(c.DeleteIntegration(integration_id=ID))
        assert await harness.refreshed(0)
        assert harness.limit() is None
        assert harness.metrics.value("sidecar_registry_refreshes_total", "ok") == 3


async def test_refresh__is_answered_at_once_when_it_was_pushed_meanwhile(tmp_path: Path) -> None:
    """Nobody is asked for what is known."""
    async with followed_in(tmp_path) as harness:
        before = harness.registry.asked.count("get")
        assert await harness.refreshed(1)
        assert await harness.refreshed(0, "nobody")
        assert harness.registry.asked.count("get") == before


async def test_refresh__those_that_meet_share_one_question(tmp_path: Path) -> None:
    """A burst of takes that find the same change asks the registry once, and all are answered."""
    async with harness_in(tmp_path) as harness:
        harness.registry.held["get"] = asyncio.Event()
        waiting = [asyncio.ensure_future(harness.refreshed(1)) for _ in range(100)]
        await until(lambda: "get" in harness.registry.asked)
        harness.registry.held["get"].set()
        assert await asyncio.gather(*waiting) == [True] * 100
        assert harness.registry.asked == ["get"]


@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
async def test_refresh__says_so_when_the_registry_cannot_tell(
    is_silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused or silent beyond the bound: False, and what is in force stays."""
    async with followed_in(tmp_path) as harness:
        if is_silent:
            monkeypatch.setattr(live, "REFRESH_TIMEOUT_S", 0.01)
            harness.registry.held["get"] = asyncio.Event()
        else:
            harness.registry.fault = AWAY
        assert not await harness.refreshed(7)
        assert harness.limit() == 60
        assert harness.metrics.value("sidecar_registry_refreshes_total", "failed") == 1


async def test_refresh__is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of integrations fetched at a time is bounded; one more fails at once."""
    monkeypatch.setattr(live, "REFRESH_TIMEOUT_S", PATIENCE_S)  # a busy machine takes longer for so many

    async with harness_in(tmp_path) as harness:
        harness.registry.held["get"] = asyncio.Event()
        names = [f"name{number}" for number in range(REFRESHES_MAX)]
        waiting = [asyncio.ensure_future(harness.refreshed(1, name)) for name in names]
        await until(lambda: harness.registry.asked.count("get") == REFRESHES_MAX)
        assert not await harness.refreshed(1, "one-more")
        harness.registry.held["get"].set()
        assert await asyncio.gather(*waiting) == [True] * REFRESHES_MAX


@pytest.mark.parametrize("is_deleted", [False, True], ids=["changed", "deleted"])
async def test_load__does_not_undo_what_was_fetched_meanwhile(is_deleted: bool, tmp_path: Path) -> None:
    """A load that began earlier holds an older record; the later one, or its end, stays in force."""
    async with harness_in(tmp_path) as harness:
        assert await harness.refreshed(1)
        harness.registry.held["load_all"] = asyncio.Event()
        task = asyncio.create_task(harness.live.run())
        await until(lambda: "load_all" in harness.registry.answered)
        change = c.SetRateLimit(integration_id=ID, rate_limit_rpm=5)
        await harness.apply(c.DeleteIntegration(integration_id=ID) if is_deleted else change)
        assert await harness.refreshed(0 if is_deleted else 2)
        harness.registry.held["load_all"].set()
        await until(lambda: harness.live.is_loaded)
        assert harness.limit() == (None if is_deleted else 5)
        await ended(task)


async def test_raise__ends_by_the_clock(tmp_path: Path) -> None:
    """A temporary raise is in force until its moment, and then no longer, without a change of the record."""
    async with followed_in(tmp_path) as harness:
        until_us = harness.clock.now_us + 10 * SECOND_US
        await harness.apply(c.RaiseLimit(integration_id=ID, rate_limit_rpm=600, until_us=until_us))
        await until(lambda: harness.limit() == 600)
        assert harness.live.timer is not None
        harness.clock.advance(us=9 * SECOND_US)
        harness.live.apply_raises()
        assert harness.limit() == 600
        assert harness.live.timer is not None
        harness.clock.advance(us=SECOND_US)
        harness.live.apply_raises()
        assert harness.limit() == 60
        assert harness.live.timer is None


async def test_run__its_end_answers_everybody(tmp_path: Path) -> None:
    """A caller that waits for a fetch when the process stops gets its answer, and no task is left."""
    async with followed_in(tmp_path) as harness:
        await until(lambda: "changes_since" in harness.registry.asked)  # the tasks of following run
        harness.registry.held["get"], before = asyncio.Event(), asyncio.all_tasks()
        waiting = asyncio.ensure_future(harness.refreshed(7))
        await until(lambda: "get" in harness.registry.asked)
        task = asyncio.create_task(harness.live.close())
        assert not await waiting
        await task
        assert asyncio.all_tasks() == before


@pytest.mark.parametrize("way", ["load", "fetch"])
def test_run__a_suspension_that_the_store_lost_stays_in_force(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failover takes no suspension back: it holds until somebody changes the integration."""

    async def act() -> None:
        async with followed_in(tmp_path) as harness:
            before = await harness.registry.real.get(ID)
            assert before is not None
            await harness.apply(c.Suspend(integration_id=ID, reason="leaked"))
            await until(lambda: harness.live.snapshot.integrations[ID].is_suspended)
            harness.registry.older = before
            if way == "load":
                harness.registry.says_reset = True
                harness.live.reconcile()
                await until(lambda: harness.metrics.value("sidecar_registry_loads_total") == 2)
            else:
                assert await harness.refreshed(before.generation)
            for _ in range(2):  # also when it is looked at again
                held = harness.live.snapshot.integrations[ID]
                assert (held.is_suspended, held.generation) == (True, before.generation)
                assert await harness.refreshed(0)
            changed = replace(before, generation=before.generation + 1, name="Changed")
            harness.registry.older = changed
            assert await harness.refreshed(changed.generation)
            assert not harness.live.snapshot.integrations[ID].is_suspended

    with caplog.at_level(logging.ERROR):
        play(act())
    assert caplog.text.count("the store lost a suspension") == 1

"""One process follows its registry: what is in force, when a change is, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from sidecar.domain.changes import Position
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.snapshot import Snapshot
from sidecar.process import followed_registry
from sidecar.process.followed_registry import FollowedRegistry
from sidecar.services.decider import Decider
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.live import WAITS_MAX
from sidecar.stores.registry.protocol import RegistryView
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import ID, LIFECYCLE, create, request
from tests.building import SECOND_US, ManualClock, make_decider, make_metrics
from tests.registry_in_redis import add_people
from tests.waiting import PATIENCE_S, until

FAR = Position(0, 1_000_000)


class Following:
    """A process that follows a registry, and the states it has reported."""

    def __init__(self, registry: SqliteRegistry) -> None:
        """Follow *registry* with a decider that knows nothing yet, on a stopped clock."""
        self.registry = registry
        self.clock = ManualClock(wall_clock_us())
        self.decider: Decider = make_decider(clock=self.clock)
        self.decider.snapshot = Snapshot.unloaded()
        self.followed = FollowedRegistry(registry, self.decider, make_metrics(), "a")
        self.states: list[tuple[str, bool, str]] = []

    async def run(self) -> None:
        """Follow until cancelled."""
        await self.followed.run(lambda *state: self.states.append(state))

    def is_known(self) -> bool:
        """Whether the integration is in force."""
        return ID in self.decider.snapshot.integrations


@asynccontextmanager
async def following(folder: Path) -> AsyncIterator[Following]:
    """A registry with people in it that is being followed, and is let go of at the end."""
    registry = await SqliteRegistry.open(folder / "registry.sqlite", LIFECYCLE)
    await add_people(registry)
    harness = Following(registry)
    task = asyncio.create_task(harness.run())
    try:
        yield harness
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await harness.followed.close()


@pytest.mark.parametrize(("ahead_s", "limit_rpm"), [(-600, 9_000), (0, 9_000), (600, 60)])
async def test_follow__a_raise_ends_by_the_clock_of_the_decider(
    tmp_path: Path, ahead_s: int, limit_rpm: int
) -> None:
    """Which is the store's where it is shared, so that a raise ends everywhere at once."""
    async with following(tmp_path) as harness:
        harness.clock.advance(seconds=ahead_s)
        await harness.registry.apply(request(create(rate_limit_rpm=60)))
        raised = c.RaiseLimit(
            integration_id=ID, rate_limit_rpm=9_000, until_us=wall_clock_us() + 300 * SECOND_US
        )
        made = await harness.registry.apply(request(raised))
        assert made.position is not None
        assert await harness.followed.put_in_force(made.position)
        assert harness.decider.snapshot.integrations[ID].limit_rpm == limit_rpm


async def test_follow__changes_of_this_process(tmp_path: Path) -> None:
    """After `put_in_force` a change is decided by; asked again, there is nothing to wait for."""
    async with following(tmp_path) as here:
        made = await here.registry.apply(request(create()))
        assert made.position is not None
        assert await here.followed.put_in_force(made.position)
        assert here.is_known()
        assert await here.followed.put_in_force(made.position)
        assert here.states == [("registry", True, "loaded")]


async def test_follow__changes_of_others(tmp_path: Path) -> None:
    """What another handle to the file changes is put in force by itself, and can be waited for."""
    async with following(tmp_path) as here:
        other = await SqliteRegistry.open(here.registry.path, LIFECYCLE)
        await other.apply(request(create()))
        await until(here.is_known)
        gone = await other.apply(request(c.DeleteIntegration(integration_id=ID)))
        assert gone.position is not None
        assert await here.followed.put_in_force(gone.position)
        assert not here.is_known()
        await other.aclose()


async def test_put_in_force__not_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that does not come says so after a bound, and leaves nothing behind."""
    monkeypatch.setattr(followed_registry, "IN_FORCE_TIMEOUT_S", 0.01)

    async with following(tmp_path) as here:
        assert not await here.followed.put_in_force(FAR)
        assert here.followed.live.waits == 0


async def test_put_in_force__is_bounded_and_ends_with_the_following(tmp_path: Path) -> None:
    """Waiters are bounded: one more fails at once; at the end all learn that nothing is in force."""
    async with following(tmp_path) as here:
        live = here.followed.live
        await until(lambda: live.is_loaded)
        waiting = [asyncio.create_task(live.wait_for(FAR, PATIENCE_S)) for _ in range(WAITS_MAX)]
        await until(lambda: live.waits == WAITS_MAX)
        assert not await live.wait_for(FAR, PATIENCE_S)
    assert await asyncio.gather(*waiting) == [False] * WAITS_MAX


def test_follow__goes_on_after_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the program while following is logged, and following begins again."""
    monkeypatch.setattr(followed_registry, "RESTART_INTERVAL_S", 0.0)
    failures = [ZeroDivisionError("a fault")]
    load_all = SqliteRegistry.load_all

    async def faulty(registry: SqliteRegistry) -> RegistryView:
        if failures:
            raise failures.pop()
        return await load_all(registry)

    monkeypatch.setattr(SqliteRegistry, "load_all", faulty)

    async def scenario() -> None:
        async with following(tmp_path) as here:
            await here.registry.apply(request(create()))
            await until(here.is_known)

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["following the registry failed; restarting"]


def test_close__is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A registry that does not let go holds nobody up for longer than the bound, and it is reported."""
    monkeypatch.setattr(followed_registry, "CLOSE_TIMEOUT_S", 0.01)
    aclose = SqliteRegistry.aclose

    async def stuck(registry: SqliteRegistry) -> NoReturn:
        await aclose(registry)
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(SqliteRegistry, "aclose", stuck)

    async def scenario() -> None:
        async with following(tmp_path):
            pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["registry not closed"]

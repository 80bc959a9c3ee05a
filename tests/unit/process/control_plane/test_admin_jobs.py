"""What is done beside the calls of the admin API: token uses are written, and lost access is warned of."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from sidecar.domain.accounts import EXPIRY_WARNING_US
from sidecar.observe.metrics import Metrics
from sidecar.process.first_administrator import create_first_administrator
from sidecar.process.supervisor.admin_api import AdminJobs
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.uses import TokenUses
from tests.administration import DAY_US, LIFECYCLE, NOW_US, SECOND_US
from tests.building import ManualClock, make_metrics
from tests.waiting import until

LIVE = "sidecar_admin_live_administrators"
EXPIRING = "sidecar_admin_tokens_expiring"
ENDS = "sidecar_admin_access_ends_timestamp_seconds"
LIFETIME_S = 90 * DAY_US // SECOND_US


class UpkeepHarness:
    """A registry with ann, whose token lives for ninety days, and the jobs of its API."""

    def __init__(self, registry: SqliteRegistry, clock: ManualClock, token_id: str) -> None:
        """Nothing has run."""
        self.registry = registry
        self.clock = clock
        self.token_id = token_id
        self.metrics: Metrics = make_metrics()
        self.uses = TokenUses()
        self.jobs = AdminJobs(registry, self.uses, self.metrics, clock)

    @classmethod
    async def open(cls, folder: Path) -> UpkeepHarness:
        """Open a fresh one."""
        clock = ManualClock()
        registry = await SqliteRegistry.open(folder / "registry.sqlite", LIFECYCLE, clock_us=clock)
        made = await create_first_administrator(registry, "ann", "Ann", LIFETIME_S)
        return cls(registry, clock, made.token_id)


def test_look__tells_until_when_somebody_can_administer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics say who can and until when; the warning begins two weeks ahead, once, and again at the end."""

    async def scenario() -> None:
        now = await UpkeepHarness.open(tmp_path)
        await now.jobs.check_tokens()
        assert now.metrics.value(LIVE) == 1
        assert now.metrics.value(ENDS) == NOW_US // SECOND_US + LIFETIME_S
        now.clock.advance(us=90 * DAY_US - EXPIRY_WARNING_US - SECOND_US)
        await now.jobs.check_tokens()
        assert caplog.records == []
        now.clock.advance(us=SECOND_US)
        for _ in range(3):
            await now.jobs.check_tokens()
        assert [record.getMessage() for record in caplog.records] == ["administrators lose access soon"]
        assert [now.metrics.value(EXPIRING, within) for within in ("7d", "30d")] == [0, 1]
        now.clock.advance(us=EXPIRY_WARNING_US)
        await now.jobs.check_tokens()
        assert len(caplog.records) == 2
        assert (now.metrics.value(LIVE), now.metrics.value(ENDS)) == (0, 0)
        await now.registry.aclose()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())


async def test_run__writes_token_uses_and_the_rest_at_the_end(tmp_path: Path) -> None:
    """A use reaches the registry by itself; what came last, when the API closes."""
    now = await UpkeepHarness.open(tmp_path)
    now.uses.note(now.token_id, "192.0.2.1", NOW_US)
    running = asyncio.create_task(now.jobs.run())
    await until(now.registry.token_uses)
    running.cancel()
    now.uses.note(now.token_id, "local", NOW_US + 1)
    await now.jobs.end()
    assert (await now.registry.token_uses())[now.token_id].source == "local"
    await now.registry.aclose()


def test_end__is_bounded_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the registry is unavailable the last uses are lost, which the log says."""

    async def scenario() -> None:
        now = await UpkeepHarness.open(tmp_path)
        now.uses.note(now.token_id, "local", NOW_US)
        await now.registry.aclose()
        await now.jobs.end()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "last uses of administrators' tokens not written"
    ]

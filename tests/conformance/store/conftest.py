"""Each store in turn, on a clock that the test controls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import BucketStore
from tests.building import ManualClock
from tests.store_harness import KINDS, StoreHarness
from tests.waiting import run

Scenario = Callable[[BucketStore, ManualClock], Awaitable[None]]


class EachStore:
    """Opens a store of one kind, runs a scenario on it and closes it."""

    def __init__(self, kind: str) -> None:
        """Nothing is opened yet."""
        self.kind = kind

    @asynccontextmanager
    async def _open(self, clock: ManualClock) -> AsyncIterator[BucketStore]:
        if self.kind == "embedded":
            yield EmbeddedBucketStore(clock)
            return
        # The clock of the script is the test's, its TTLs are real: quotas here refill by the second.
        store = StoreHarness(self.kind.removesuffix("-asyncio")).store(clock)
        await store.start()
        assert store.is_ready
        yield store
        await store.close()

    def run(self, scenario: Scenario) -> None:
        """Run *scenario*; it must not leave a task behind."""

        async def playing() -> None:
            clock = ManualClock()
            async with self._open(clock) as store:
                await scenario(store, clock)

        run(playing(), plain=self.kind.endswith("-asyncio"))


@pytest.fixture(params=("embedded", *KINDS, "standalone-asyncio"))
def each_store(request: pytest.FixtureRequest) -> EachStore:
    """Each kind of store."""
    return EachStore(str(request.param))


@pytest.fixture(params=("standalone", "sentinel", "cluster"))
def harness(request: pytest.FixtureRequest) -> StoreHarness:
    """Each way of finding a primary."""
    return StoreHarness(str(request.param))

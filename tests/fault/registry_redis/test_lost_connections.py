"""Connections that the server ends while it stays there: the registry goes on by another one at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

from sidecar.domain.changes import Revision
from sidecar.domain.lifecycle import commands as c
from sidecar.stores.registry.redis.nodes import LIMITS
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import ANN, ID, LIFECYCLE, create, request
from tests.registry_in_redis import add_people
from tests.waiting import PATIENCE_S

from .kept import Shelf

NEVER_AGAIN = replace(LIMITS, backoff_first_s=120.0, backoff_max_s=120.0)
"""Whoever waits before connecting again fails the test."""
KILLS = 20


def kill_clients(shelf: Shelf) -> None:
    """End every connection but the test's own."""
    shelf.server.client_kill_filter(_type="normal", skipme=True)
    shelf.server.client_kill_filter(_type="pubsub", skipme=True)


def test_registry__calls_go_on_after_each_killed_connection(shelf: Shelf, runner: asyncio.Runner) -> None:
    """Reads and changes, each right after a kill: none fails, and none is made twice."""
    url = shelf.place("calls").url(shelf.port)

    async def scenario() -> None:
        registry = RedisRegistry(url, LIFECYCLE, limits=NEVER_AGAIN)
        await add_people(registry)
        await registry.apply(request(create(), ANN))
        generation = 1
        for number in range(KILLS):
            kill_clients(shelf)
            record = await registry.get(ID)
            assert record is not None and record.generation == generation
            kill_clients(shelf)
            command = c.SetRateLimit(integration_id=ID, rate_limit_rpm=100 + number)
            generation = (await registry.apply(request(command, ANN))).record.generation
            assert generation == number + 2
        await registry.aclose()

    bounded(runner, scenario())


def test_registry__the_push_of_changes_is_back_at_once(shelf: Shelf, runner: asyncio.Runner) -> None:
    """A caller that waits for changes learns of one that is made right after a kill."""
    url = shelf.place("push").url(shelf.port)

    async def scenario() -> None:
        writer, reader = RedisRegistry(url, LIFECYCLE), RedisRegistry(url, LIFECYCLE, limits=NEVER_AGAIN)
        await add_people(writer)
        revision = await reader.revision()
        for number in range(KILLS):
            waiting = asyncio.ensure_future(until_changed(reader, revision))
            await asyncio.sleep(0)
            kill_clients(shelf)
            await writer.apply(request(create(f"acme-{number}"), ANN))
            revision = await waiting
        await writer.aclose()
        await reader.aclose()

    bounded(runner, scenario())


async def until_changed(registry: RedisRegistry, revision: Revision) -> Revision:
    """The revision after the next change."""
    while True:
        changes = await registry.changes_since(revision, PATIENCE_S)
        if changes.records:
            return changes.revision
        revision = changes.revision


def bounded(runner: asyncio.Runner, work: Awaitable[None]) -> None:
    """Run *work* within a deadline."""

    async def run() -> None:
        await asyncio.wait_for(work, PATIENCE_S)

    runner.run(run())

"""A registry with administrators in it, driven step by step; and the stores that must keep the contract."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from sidecar.domain.administrators import AdminCommand, Bootstrap, CreateAdministrator, NewToken
from sidecar.domain.changes import AdminCommitted, AdminRequest, ChangeContext, Committed
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Actor
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.redis.registry import RedisRegistry
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import ANN, AUDREY, BOB, CAT, DAY_US, LIFECYCLE, OLLI, digest, request
from tests.building import ManualClock
from tests.store_harness import url_of
from tests.waiting import PATIENCE_S

Result = TypeVar("Result")

CONTEXT = ChangeContext("req-1", "127.0.0.1")
TOKENS_LAST_US = 300 * DAY_US


class Backend(Protocol):
    """One store under test; every `open` is another handle to the same registry, as of another process."""

    async def open(self) -> Registry:
        """Open the registry."""


class SqliteBackend:
    """The registry in a SQLite file; changes of other handles are looked for every few milliseconds."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        """Keep the file in *folder*."""
        self.path = folder / "registry.db"
        self._clock = clock

    async def open(self) -> SqliteRegistry:
        """Open the file."""
        return await SqliteRegistry.open(self.path, LIFECYCLE, clock_us=self._clock, poll_interval_s=0.002)


class RedisBackend:
    """The registry in a Redis that tests share, under a separate prefix."""

    def __init__(self, kind: str, folder: Path, clock: ManualClock) -> None:
        """Keep it in the server of *kind*."""
        self.url = url_of(kind, f"sidecar:{secrets.token_hex(4)}:")
        self._clock = clock

    async def open(self) -> RedisRegistry:
        """A handle with separate connections."""
        return RedisRegistry(self.url, LIFECYCLE, clock_us=self._clock)


BACKENDS: Mapping[str, Callable[[Path, ManualClock], Backend]] = {
    "sqlite": SqliteBackend,
    "redis": partial(RedisBackend, "standalone"),
    "redis-cluster": partial(RedisBackend, "cluster"),
}
"""Every store that must keep the contract; a further one is added here."""


def new_token(name: str, clock: ManualClock) -> NewToken:
    """The token called *name*."""
    return NewToken(name, digest(name), clock.now_us + TOKENS_LAST_US)


async def found(registry: Registry, clock: ManualClock) -> None:
    """Put ann, bob, cat (admins), olli (operator) and audrey (auditor) into an empty registry."""
    first = Bootstrap(administrator_id=ANN.id, name="Ann", token=new_token(ANN.token_id, clock))
    await registry.administer(AdminRequest(first, None, CONTEXT))
    for actor in (BOB, CAT, OLLI, AUDREY):
        more = CreateAdministrator(
            administrator_id=actor.id, name=actor.id, role=actor.role, token=new_token(actor.token_id, clock)
        )
        await registry.administer(AdminRequest(more, ANN, CONTEXT))


class RegistryHarness:
    """A registry and its people; every step runs to its end, within a deadline."""

    def __init__(self, backend: Backend, clock: ManualClock, runner: asyncio.Runner) -> None:
        """Open the registry and found it."""
        self.backend = backend
        self.clock = clock
        self._runner = runner
        self.registry = self.run(backend.open())
        self.run(found(self.registry, clock))

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run *coroutine* to its end."""

        async def bounded() -> Result:
            return await asyncio.wait_for(coroutine, PATIENCE_S)

        return self._runner.run(bounded())

    def apply(
        self, command: c.Command, actor: Actor = ANN, expected: int | None = None, **context: str
    ) -> Committed:
        """Make one change."""
        return self.run(self.registry.apply(request(command, actor, expected, **context)))

    def refused(
        self, command: c.Command, actor: Actor = ANN, expected: int | None = None, **context: str
    ) -> RefusedError:
        """The refusal of one change."""
        with pytest.raises(RefusedError) as caught:
            self.apply(command, actor, expected, **context)
        return caught.value

    def administer(self, command: AdminCommand, actor: Actor | None = ANN, **context: str) -> AdminCommitted:
        """Make one change of the administrators."""
        given = ChangeContext(**{"request_id": "req-1", "source": "127.0.0.1", **context})
        return self.run(self.registry.administer(AdminRequest(command, actor, given)))

    def get(self, integration_id: str) -> Integration:
        """The integration, which must be there."""
        record = self.run(self.registry.get(integration_id))
        assert record is not None
        return record

    @asynccontextmanager
    async def another(self) -> AsyncIterator[Registry]:
        """Another handle to the same registry, as another process has it."""
        registry = await self.backend.open()
        try:
            yield registry
        finally:
            await registry.aclose()

"""The registry in Redis for tests: people in it, changes made to it, each by separate connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sidecar.domain.administrators import Bootstrap, CreateAdministrator, NewToken
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.changes import AdminRequest, ChangeContext, Committed
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.roles import Actor
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import ANN, BOB, CAT, DAY_US, ID, LIFECYCLE, digest, request

Result = TypeVar("Result")

CONTEXT = ChangeContext("req-1", "127.0.0.1")


async def add_people(registry: Registry, actors: Sequence[Actor] = (ANN, BOB, CAT)) -> None:
    """Put administrators into an empty registry, with tokens that live today."""
    for actor in actors:
        token = NewToken(actor.token_id, digest(actor.token_id), wall_clock_us() + 300 * DAY_US)
        if actor is actors[0]:
            first = Bootstrap(administrator_id=actor.id, name=actor.id, token=token)
            await registry.administer(AdminRequest(first, None, CONTEXT))
        else:
            more = CreateAdministrator(administrator_id=actor.id, name=actor.id, role=actor.role, token=token)
            await registry.administer(AdminRequest(more, actors[0], CONTEXT))


def create_for(key: NewApiKey, integration_id: str = ID, **given: object) -> c.CreateIntegration:
    """The command that creates the integration that *key* belongs to."""
    fresh = c.NewCredential(key.credential_id, key.digest)
    return c.CreateIntegration(
        **{"integration_id": integration_id, "name": "Acme", "credentials": (fresh,), **given}  # type: ignore[arg-type]
    )


class RegistryHand:
    """Changes a registry in Redis from a test that is not asynchronous."""

    def __init__(self, url: str | StoreUrl) -> None:
        """Change the one at *url*."""
        self.url = parse_store_url(url) if isinstance(url, str) else url

    def found(self) -> None:
        """Put people into it."""

        async def work(registry: RedisRegistry) -> None:
            await add_people(registry)

        self._run(work)

    def apply(self, command: c.Command, actor: Actor = ANN) -> Committed:
        """Make one change."""

        async def work(registry: RedisRegistry) -> Committed:
            return await registry.apply(request(command, actor))

        return self._run(work)

    def _run(self, work: Callable[[RedisRegistry], Awaitable[Result]]) -> Result:
        async def scenario() -> Result:
            registry = RedisRegistry(self.url, LIFECYCLE)
            try:
                return await work(registry)
            finally:
                await registry.aclose()

        return asyncio.run(scenario())

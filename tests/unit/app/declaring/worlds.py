"""Where declared changes go in these tests: registries in SQLite and in Redis, and the admin API."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sidecar.app.declaring.api_target import ApiTarget
from sidecar.app.declaring.registry_target import RegistryTarget
from sidecar.app.declaring.target import ChangeTarget, Result
from sidecar.domain.declared import Step
from sidecar.domain.integrations import Integration
from sidecar.domain.roles import Actor
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.redis.registry import RedisRegistry
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import ANN, LIFECYCLE
from tests.redis_servers import LOOPBACK, shared
from tests.registry_in_redis import add_people
from tests.unit.app.administration.served import served_api

_NUMBERS = itertools.count()


def fresh_store_url() -> str:
    """A place in a real Redis that no other test uses."""
    return f"redis://{LOOPBACK}:{shared().standalone.port}?prefix=declared{next(_NUMBERS)}:&partitions=4"


@contextmanager
def sqlite_target(folder: Path, actor: Actor = ANN) -> Iterator[ChangeTarget]:
    """A fresh SQLite registry with people in it."""
    with asyncio.Runner() as runner:
        yield from _direct(
            runner, runner.run(SqliteRegistry.open(folder / "registry.sqlite", LIFECYCLE)), actor
        )


@contextmanager
def redis_target(folder: Path, actor: Actor = ANN) -> Iterator[ChangeTarget]:
    """A fresh registry in a real Redis with people in it."""
    with asyncio.Runner() as runner:
        yield from _direct(runner, RedisRegistry(parse_store_url(fresh_store_url()), LIFECYCLE), actor)


@contextmanager
def api_target(folder: Path) -> Iterator[ChangeTarget]:
    """The real admin API over a fresh SQLite registry, as ann."""
    with served_api(folder) as served, served.client() as client:
        yield ApiTarget(client)


def _direct(runner: asyncio.Runner, registry: Registry, actor: Actor) -> Iterator[ChangeTarget]:
    try:
        runner.run(add_people(registry))
        yield RegistryTarget(registry, actor, LIFECYCLE.catalogue, runner)
    finally:
        runner.run(registry.aclose())


class Meddled:
    """A target before whose n-th batch something else happens; it counts the batches."""

    def __init__(self, target: ChangeTarget, before: Callable[[int], None]) -> None:
        """Call *before* with the number of each batch, and then let *target* make it."""
        self._target = target
        self._before = before
        self.knows_digests = target.knows_digests
        self.batches: list[int] = []

    def identify(self) -> Actor:
        """See `ChangeTarget.identify`."""
        return self._target.identify()

    def catalogue(self) -> ScopeCatalogue:
        """See `ChangeTarget.catalogue`."""
        return self._target.catalogue()

    def load(self) -> tuple[Integration, ...]:
        """See `ChangeTarget.load`."""
        return self._target.load()

    def apply(self, steps: Sequence[Step]) -> tuple[Result, ...]:
        """See `ChangeTarget.apply`."""
        self.batches.append(len(steps))
        self._before(len(self.batches))
        return self._target.apply(steps)

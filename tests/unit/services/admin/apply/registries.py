"""Registries to which these tests apply files: SQLite, and a real Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sidecar.domain.changes import ChangeContext, ChangeRequest, Committed
from sidecar.domain.declared import ApplyPlan
from sidecar.domain.integrations import Integration
from sidecar.domain.refusals import RefusedError
from sidecar.services.admin.apply.engine import ApplyRequest, Report, apply_plan, make_plan
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.file.registry_file import parse_declarations
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.redis.registry import RedisRegistry
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import ANN, LIFECYCLE, NOW_US
from tests.redis_servers import LOOPBACK, shared
from tests.registry_in_redis import add_people

CONTEXT = ChangeContext("apply-test", "local")
Result = TypeVar("Result")
_NUMBERS = itertools.count()


def fresh_store_url() -> str:
    """A place in a real Redis that no other test uses."""
    return f"redis://{LOOPBACK}:{shared().standalone.port}?prefix=declared{next(_NUMBERS)}:&partitions=4"


class Target:
    """A fresh registry with administrators in it, and the loop that it is used on."""

    def __init__(self, registry: Registry, runner: asyncio.Runner) -> None:
        """Apply files to *registry*."""
        self.registry = registry
        self._runner = runner
        self.batches: list[int] = []
        self.before_batch: Callable[[int], Coroutine[Any, Any, None]] | None = None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of *work*."""
        return self._runner.run(work)

    def load(self) -> tuple[Integration, ...]:
        """Every integration."""
        return self.run(self.registry.load_all()).records

    def plan(self, text: str, has_prune: bool = False) -> ApplyPlan:
        """What *text* would change."""
        return self.run(make_plan(self.registry, LIFECYCLE.catalogue, request(text, has_prune)))

    def apply(self, text: str, has_prune: bool = False) -> tuple[ApplyPlan, Report]:
        """Plan and apply *text*; `before_batch` runs before each batch, which is counted."""
        plan = self.plan(text, has_prune)
        real = self.registry.apply_many

        async def counted(requests: Sequence[ChangeRequest]) -> Sequence[Committed | RefusedError]:
            self.batches.append(len(requests))
            if self.before_batch is not None:
                await self.before_batch(len(self.batches))
            return await real(requests)

        return plan, self.run(apply_plan(_Counted(counted), plan, request(text, has_prune)))  # type: ignore[arg-type]


class _Counted:
    """As much of a registry as `apply_plan` uses."""

    def __init__(self, apply_many: Callable[[Sequence[ChangeRequest]], Any]) -> None:
        """Hand batches to *apply_many*."""
        self.apply_many = apply_many


def request(text: str, has_prune: bool = False) -> ApplyRequest:
    """What *text* declares, as ann says it."""
    declared = parse_declarations(text.encode(), "FILE", LIFECYCLE.catalogue)
    return ApplyRequest(declared.declarations, "declared in FILE", ANN, CONTEXT, NOW_US, has_prune)


@contextmanager
def sqlite_target(folder: Path) -> Iterator[Target]:
    """A SQLite registry in *folder*."""
    with asyncio.Runner() as runner:
        yield from _filled(runner, runner.run(SqliteRegistry.open(folder / "registry.sqlite", LIFECYCLE)))


@contextmanager
def redis_target(folder: Path) -> Iterator[Target]:
    """A registry in a real Redis."""
    with asyncio.Runner() as runner:
        yield from _filled(runner, RedisRegistry(parse_store_url(fresh_store_url()), LIFECYCLE))


def _filled(runner: asyncio.Runner, registry: Registry) -> Iterator[Target]:
    try:
        runner.run(add_people(registry))
        yield Target(registry, runner)
    finally:
        runner.run(registry.aclose())

"""The store that a fleet shares, as one process uses it: buckets, and the registry unless a file is it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sidecar.app.background import BackgroundThread
from sidecar.app.registry_source import beside_the_event_loop
from sidecar.app.registry_watch import let_go, tell_registry
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.snapshot import CompiledIntegration, Snapshot
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.services.decider import Decider
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import StoreUrl
from sidecar.stores.registry.live import LiveOptions, LiveRegistry
from sidecar.stores.registry.redis.registry import RedisRegistry

_log = logging.getLogger("sidecar.app")

OnState = Callable[[str, bool, str], None]
"""Told how a component is: its name, whether it is ready, and its state in a word."""


class SharedStore:
    """
    The parts of one process that need the shared store.

    `registry` None = a file is the registry; then takes do not look at generations, because the store
    knows none. `components` are what must be ready before the process is.
    """

    def __init__(
        self, url: StoreUrl, catalogue: ScopeCatalogue, metrics: Metrics, *, is_registry: bool
    ) -> None:
        """Nothing is opened before `run`."""
        self.buckets = RedisBucketStore(url, metrics, checks_generation=is_registry)
        self.registry = RedisRegistry(url, Lifecycle(catalogue)) if is_registry else None
        self.components = ("store",)
        self._url = url
        self._metrics = metrics
        self._decider: Decider | None = None
        self._on_state: OnState = lambda name, is_ready, state: None
        self._thread: BackgroundThread | None = None
        self._letting_go: set[asyncio.Task[None]] = set()
        self._live: LiveRegistry | None = None
        self._was_ready = False

    def attach(self, decider: Decider) -> None:
        """Keep the snapshot of *decider* true to the registry."""
        self._decider = decider

    def reload(self) -> None:
        """Look for changes of the registry at once."""
        if self._live is not None:
            self._live.reconcile()

    async def run(self, on_state: OnState) -> None:
        """Connect, follow the registry, and tell *on_state*, until cancelled."""
        self._on_state = on_state
        self.buckets.on_state_change = self._tell_store
        tasks: list[asyncio.Task[None]] = []
        try:
            if self.registry is not None:
                self._live = self._follow(self.registry)
                self.buckets.refresh = self._live.refresh
                tasks.append(asyncio.get_running_loop().create_task(self._live.run()))
            await self.buckets.start()
            self._tell_store(self.buckets.is_ready)
            await asyncio.Event().wait()
        finally:
            await self._end(tasks)

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in (*tasks, *self._letting_go):
            task.cancel()
        await asyncio.gather(*tasks, *self._letting_go, return_exceptions=True)
        await self.buckets.close()
        if self.registry is not None:
            await self.registry.aclose()
        if self._thread is not None:
            self._thread.close()

    def _follow(self, registry: RedisRegistry) -> LiveRegistry:
        self._thread = BackgroundThread("registry")
        options = LiveOptions(sidecar_id=_own_id(), beside=self._beside)
        return LiveRegistry(registry, self._put_in_force, self._metrics, options)

    def _beside(self, work: Callable[[], Any]) -> Awaitable[Any]:
        """Compile in a thread of its own, without holding up decisions."""

        def job() -> Any:
            with beside_the_event_loop():
                return work()

        assert self._thread is not None
        return self._thread.run(job)

    def _put_in_force(self, snapshot: Snapshot, retired: Sequence[CompiledIntegration]) -> None:
        assert self._decider is not None
        is_first = not self._decider.snapshot.is_loaded
        self._decider.snapshot = snapshot
        tell_registry(snapshot, self._metrics)
        if is_first:
            self._on_state("registry", True, "loaded")
        if retired:
            task = asyncio.get_running_loop().create_task(let_go(list(retired)))
            self._letting_go.add(task)
            task.add_done_callback(self._letting_go.discard)

    def _tell_store(self, is_ready: bool) -> None:
        """
        Once connected the process stays ready: without the store it answers by its policy, and a fleet
        that is taken out of service as one helps nobody.
        """
        self._was_ready = self._was_ready or is_ready
        self._on_state("store", self._was_ready, "connected" if is_ready else "unreachable")
        log_event(
            _log,
            logging.INFO if is_ready else logging.WARNING,
            "store connected" if is_ready else "store unreachable",
            store=str(self._url),
        )


def _own_id() -> str:
    """A name that no other process of the fleet has, and that tells where this one runs."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"

"""Follows the registry that administrators change, so that changes are in force in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from sidecar.domain.changes import Position
from sidecar.domain.snapshot import CompiledIntegration, Snapshot
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.background import BackgroundThread
from sidecar.process.registry_source import without_garbage_collection
from sidecar.process.registry_watch import release_retired, set_registry_metrics
from sidecar.process.use_writer import CredentialUseWriter, use_recorder
from sidecar.services.decider import Decider
from sidecar.stores.registry.live import PUSH_PATIENCE_S, LiveOptions, LiveRegistry
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.uses import CredentialUses, RefusedCallers

IN_FORCE_TIMEOUT_S = 2.0
"""How long the answer to a change waits until the change is in force in this process."""
RESTART_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 5.0

OnState: TypeAlias = Callable[[str, bool, str], None]
"""Called with a component's name, whether it is ready, and its state as text."""

_log = logging.getLogger("sidecar.registry")


class FollowedRegistry:
    """
    Keeps a decider's snapshot up to date with a registry that this and other processes change.

    Owns the registry: `close` closes it. `live` is what has been read of it.
    """

    def __init__(
        self,
        registry: Registry,
        decider: Decider,
        metrics: Metrics,
        sidecar_id: str,
        patience_s: float = PUSH_PATIENCE_S,
    ) -> None:
        """Read nothing before `run`; *sidecar_id* and *patience_s* are those of `LiveOptions`."""
        self.registry = registry
        self._decider = decider
        self._metrics = metrics
        self._on_state: OnState = lambda name, is_ready, state: None
        self._thread = BackgroundThread("registry-compile")
        self._releases: set[asyncio.Task[None]] = set()
        self._is_in_force = False
        self._problem = ""
        options = LiveOptions(
            sidecar_id, run_in_thread=self._in_thread, clock_us=decider.clock_us, push_patience_s=patience_s
        )
        self.live = LiveRegistry(registry, self._install, metrics, options)
        self.live.on_trouble = self._report_state
        uses, refusals = CredentialUses(), RefusedCallers()
        decider.note_use = use_recorder(uses, refusals)
        self._use_writer = CredentialUseWriter(uses, refusals, registry, metrics)

    async def run(self, on_state: OnState) -> None:
        """Follow the registry until cancelled; *on_state* is called when its state changes."""
        self._on_state = on_state
        await asyncio.gather(
            self._restart_forever(self.live.run), self._restart_forever(self._use_writer.run)
        )

    async def _restart_forever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work*, and restart it after a bug, so that changes keep coming into force."""
        while True:
            try:
                await work()
            except Exception:
                _log.exception("following the registry failed; restarting")
            await asyncio.sleep(RESTART_INTERVAL_S)

    def refresh(self, integration_id: str, generation: int, done: Callable[[bool], None]) -> None:
        """
        Load the integration's record, which the store has in *generation*. See `LiveRegistry`.

        Until then the outdated record allows no request while the store is down.
        """
        compiled = self._decider.snapshot.integrations.get(integration_id)
        if compiled is not None and compiled.generation != generation:
            compiled.is_outdated = True
        self.live.refresh(integration_id, generation, done)

    def invalidate(self) -> None:
        """Stop using the registry until it is loaded again: its server lacks changes that were in force."""
        self.live.invalidate()

    def reload(self) -> None:
        """Check for changes at once."""
        self.live.reconcile()

    async def put_in_force(self, position: Position) -> bool:
        """Wait until this process decides by the change at *position*; False = not in time."""
        return await self.live.wait_for(position, IN_FORCE_TIMEOUT_S)

    async def close(self) -> None:
        """Close the registry; `run` must have ended."""
        for task in self._releases:
            task.cancel()
        await asyncio.gather(*self._releases, return_exceptions=True)
        await self._use_writer.end()
        self._thread.close()
        await close_registry(self.registry)

    def _in_thread(self, work: Callable[[], Any]) -> Awaitable[Any]:
        """Run *work* in the background thread, without delaying decisions."""

        def job() -> Any:
            with without_garbage_collection():
                return work()

        return self._thread.run(job)

    def _install(self, snapshot: Snapshot, retired: Sequence[CompiledIntegration]) -> None:
        """Put *snapshot* in force."""
        was_in_force = self._is_in_force
        self._decider.snapshot = snapshot
        set_registry_metrics(snapshot, self._metrics)
        self._is_in_force = snapshot.is_loaded or bool(snapshot.integrations)
        if self._is_in_force is not was_in_force:
            self._report_state(self._problem)
        if retired:
            task = asyncio.get_running_loop().create_task(release_retired(list(retired)))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    def _report_state(self, problem: str) -> None:
        """Report the registry's state; *problem* '' = it is followed."""
        self._problem = problem
        if self._is_in_force:
            state = f"loaded, but not followed: {problem}" if problem else "loaded"
        else:
            state = problem or "starting"
        self._on_state("registry", self._is_in_force, state)


async def close_registry(registry: Registry) -> None:
    """Close *registry* within `CLOSE_TIMEOUT_S`; log a failure."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await registry.aclose()
    except Exception as error:  # the process ends anyway, and what was committed is durable
        log_event(_log, logging.WARNING, "registry not closed", problem=str(error) or type(error).__name__)

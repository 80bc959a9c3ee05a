"""The registry that administrators change, as one process follows it, so that it is in force here."""

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
from sidecar.process.registry_source import beside_the_event_loop
from sidecar.process.registry_watch import let_go, tell_registry
from sidecar.process.use_keeping import UseKeeping, use_noter
from sidecar.services.decider import Decider
from sidecar.stores.registry.live import REACH_PATIENCE_S, LiveOptions, LiveRegistry
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.uses import CredentialUses, RefusedCallers

IN_FORCE_TIMEOUT_S = 2.0
"""How long a change waits to be in force here before its answer says that it is not yet."""
RESTART_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 5.0

OnState: TypeAlias = Callable[[str, bool, str], None]
"""Told how a component is: its name, whether it is ready, and its state in a word."""

_log = logging.getLogger("sidecar.registry")


class FollowedRegistry:
    """
    Keeps the snapshot of a decider true to a registry that this and other processes change.

    Owns the registry: `close` ends it.
    """

    def __init__(
        self,
        registry: Registry,
        decider: Decider,
        metrics: Metrics,
        sidecar_id: str,
        patience_s: float = REACH_PATIENCE_S,
    ) -> None:
        """Nothing is asked before `run`; *sidecar_id* and *patience_s* are those of `LiveOptions`."""
        self.registry = registry
        self._decider = decider
        self._metrics = metrics
        self._on_state: OnState = lambda name, is_ready, state: None
        self._thread = BackgroundThread("registry-compile")
        self._letting_go: set[asyncio.Task[None]] = set()
        self._is_in_force = False
        self._trouble = ""
        options = LiveOptions(
            sidecar_id, beside=self._beside, clock_us=decider.clock_us, reach_patience_s=patience_s
        )
        self._live = LiveRegistry(registry, self._show, metrics, options)
        self._live.on_trouble = self._tell
        uses, refusals = CredentialUses(), RefusedCallers()
        decider.note_use = use_noter(uses, refusals)
        self._keeping = UseKeeping(uses, refusals, registry, metrics)

    async def run(self, on_state: OnState) -> None:
        """Follow the registry until cancelled; *on_state* is told when it is loaded."""
        self._on_state = on_state
        await asyncio.gather(self._again(self._live.run), self._again(self._keeping.run))

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work*, which ends only by a fault of ours: an old registry must not stay in force for that."""
        while True:
            try:
                await work()
            except Exception:
                _log.exception("following the registry failed, it begins again")
            await asyncio.sleep(RESTART_INTERVAL_S)

    def refresh(self, integration_id: str, generation: int, done: Callable[[bool], None]) -> None:
        """
        Put the integration's record into force: the store knows it in *generation*. See `LiveRegistry`.

        Until it is, the record that is in force here opens no door if the store should fail now.
        """
        compiled = self._decider.snapshot.integrations.get(integration_id)
        if compiled is not None and compiled.generation != generation:
            compiled.is_outdated = True
        self._live.refresh(integration_id, generation, done)

    def doubt(self) -> None:
        """Put everything out of force until it was loaded anew: a server lacks what was followed."""
        self._live.doubt()

    def reload(self) -> None:
        """Look for changes at once."""
        self._live.reconcile()

    async def put_in_force(self, position: Position) -> bool:
        """Wait until this process decides by the change at *position*; False = not in time."""
        return await self._live.reach(position, IN_FORCE_TIMEOUT_S)

    async def close(self) -> None:
        """Let go of the registry; `run` must have ended."""
        for task in self._letting_go:
            task.cancel()
        await asyncio.gather(*self._letting_go, return_exceptions=True)
        await self._keeping.end()
        self._thread.close()
        await close_registry(self.registry)

    def _beside(self, work: Callable[[], Any]) -> Awaitable[Any]:
        """Compile in a thread of its own, without holding up decisions."""

        def job() -> Any:
            with beside_the_event_loop():
                return work()

        return self._thread.run(job)

    def _show(self, snapshot: Snapshot, retired: Sequence[CompiledIntegration]) -> None:
        """Put *snapshot* in force."""
        was_in_force = self._is_in_force
        self._decider.snapshot = snapshot
        tell_registry(snapshot, self._metrics)
        self._is_in_force = snapshot.is_loaded or bool(snapshot.integrations)
        if self._is_in_force is not was_in_force:
            self._tell(self._trouble)
        if retired:
            task = asyncio.get_running_loop().create_task(let_go(list(retired)))
            self._letting_go.add(task)
            task.add_done_callback(self._letting_go.discard)

    def _tell(self, trouble: str) -> None:
        """State how the registry is: without *trouble* it is followed."""
        self._trouble = trouble
        if self._is_in_force:
            state = f"loaded, but not followed: {trouble}" if trouble else "loaded"
        else:
            state = trouble or "starting"
        self._on_state("registry", self._is_in_force, state)


async def close_registry(registry: Registry) -> None:
    """Let go of *registry* within a bound, whatever its state; what fails is told."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await registry.aclose()
    except Exception as error:  # the process ends anyway, and what was committed is durable
        log_event(_log, logging.WARNING, "registry not closed", problem=str(error) or type(error).__name__)

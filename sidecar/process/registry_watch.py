"""Applies changes of the registry file: at once on SIGHUP, otherwise within two seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from sidecar.domain.snapshot import CompiledIntegration, Snapshot
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.file_watch import POLL_INTERVAL_S, FileWatch
from sidecar.process.registry_source import LoadedRegistry, RegistrySource
from sidecar.services.decider import Decider

RELEASED_PER_TURN = 200

_log = logging.getLogger("sidecar.registry")


class RegistryWatch(FileWatch[LoadedRegistry]):
    """Replaces the snapshot in force when the registry file changes."""

    def __init__(
        self,
        source: RegistrySource,
        decider: Decider,
        metrics: Metrics,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        """Keep *decider* up to date with *source*; count reloads in *metrics*."""
        super().__init__(source, "registry", "registry", metrics, _log, poll_interval_s)
        self._registry = source
        self._decider = decider

    def _loader(self, is_asked: bool) -> Callable[[], LoadedRegistry | None]:
        return partial(self._registry.load if is_asked else self._registry.poll, self._decider.snapshot)

    def _count(self, result: str) -> None:
        self._metrics.add("sidecar_registry_reloads_total", result)

    async def _put_in_force(self, loaded: LoadedRegistry) -> None:
        retired = retired_by(self._decider.snapshot, loaded.snapshot)
        self._decider.snapshot = loaded.snapshot
        report_registry(loaded, self._source.file, self._metrics)
        await release_retired(retired)


def retired_by(before: Snapshot, after: Snapshot) -> list[CompiledIntegration]:
    """The integrations of *before* that *after* does not share."""
    return [
        compiled for id, compiled in before.integrations.items() if after.integrations.get(id) is not compiled
    ]


async def release_retired(retired: list[CompiledIntegration]) -> None:
    """
    Free *retired*, a few in each turn of the event loop.

    An integration and its credentials refer to each other. Breaking the cycle here avoids a garbage
    collection, which would scan the whole registry with the interpreter locked.
    """
    while retired:
        for compiled in retired[-RELEASED_PER_TURN:]:
            compiled.credentials = ()
            compiled.fragments.clear()
        del compiled
        del retired[-RELEASED_PER_TURN:]
        await asyncio.sleep(0)


def set_registry_metrics(snapshot: Snapshot, metrics: Metrics) -> None:
    """Set the metrics of the registry in force."""
    metrics.set("sidecar_registry_integrations", to=len(snapshot.integrations))
    metrics.set("sidecar_registry_credentials", to=len(snapshot.credentials))
    metrics.set("sidecar_registry_loaded_timestamp_seconds", to=int(time.time()))


def report_registry(loaded: LoadedRegistry, file: str, metrics: Metrics) -> None:
    """Log the registry in force and its warnings, and set its metrics."""
    set_registry_metrics(loaded.snapshot, metrics)
    log_event(
        _log,
        logging.INFO,
        "registry in force",
        file=file,
        integrations=len(loaded.snapshot.integrations),
        credentials=len(loaded.snapshot.credentials),
        took_ms=round(loaded.took_s * 1_000),
    )
    for warning in loaded.warnings:
        log_event(_log, logging.WARNING, "registry warning", at=str(warning))

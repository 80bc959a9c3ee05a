"""Applies changes of the registry file: at once on SIGHUP, otherwise within two seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from sidecar.domain.snapshot import CompiledIntegration, Snapshot
from sidecar.observe.file_reading import ReadEpisode
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.background import BackgroundThread
from sidecar.process.registry_source import LoadedRegistry, RegistrySource
from sidecar.services.decider import Decider
from sidecar.sources.file_faults import FileFaultsError

POLL_INTERVAL_S = 1.0
SETTLE_INTERVAL_S = 0.25
RELEASED_PER_TURN = 200
SLOW_LOAD_S = 30.0
"""How long a load may take before a warning: the file is probably on a dead network disk."""

Load: TypeAlias = Callable[[Snapshot], LoadedRegistry | None]

_log = logging.getLogger("sidecar.registry")


class RegistryWatch:
    """
    Replaces the snapshot in force when the registry file changes.

    A background thread polls, reads and compiles the file; the event loop only assigns the new snapshot.
    After any failure the previous registry stays in force.
    """

    def __init__(
        self,
        source: RegistrySource,
        decider: Decider,
        metrics: Metrics,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        """Keep *decider* up to date with *source*; count reloads in *metrics*."""
        self._source = source
        self._decider = decider
        self._metrics = metrics
        self._poll_interval_s = poll_interval_s
        self._episode = ReadEpisode(metrics, "registry", source.file)
        self._asked = asyncio.Event()
        self._thread = BackgroundThread("registry")

    def reload(self) -> None:
        """Read the file at once, even if it seems unchanged."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                is_asked = await self._wait()
                load = self._source.load if is_asked else self._source.poll
                await self._load(load, is_asked)
        finally:
            self._source.cancel()
            self._thread.close()

    async def _wait(self) -> bool:
        """Wait until the next poll is due or a reload is requested; True = a reload was requested."""
        interval_s = min(SETTLE_INTERVAL_S, self._poll_interval_s)
        if not self._source.is_settling:
            interval_s = self._poll_interval_s
        try:
            await asyncio.wait_for(self._asked.wait(), interval_s)
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _load(self, load: Load, is_asked: bool) -> None:
        loading = self._thread.run(partial(load, self._decider.snapshot))
        while not (await asyncio.wait({loading}, timeout=SLOW_LOAD_S))[0]:
            log_event(_log, logging.WARNING, "reading the registry is slow", file=self._source.file)
        try:
            loaded = loading.result()
        except FileFaultsError as error:
            if error.is_unreadable:
                if not self._episode.is_open:
                    self._count("failed")
                self._episode.begin(str(error))
                return
            self._episode.end()
            self._count("failed")
            log_event(
                _log,
                logging.ERROR,
                "registry file rejected; the previous registry stays in force",
                file=self._source.file,
                mistakes=error.total,
                faults=[str(fault) for fault in error.faults],
            )
        except Exception:  # a bug must not end the watch
            self._count("failed")
            _log.exception("loading the registry failed; the previous registry stays in force")
        else:
            if not self._source.is_unreadable:
                self._episode.end()
            if loaded is not None:
                self._count("ok")
                await self._put_in_force(loaded)
            elif is_asked:
                self._count("unchanged")
                log_event(_log, logging.INFO, "registry unchanged", file=self._source.file)

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

"""Keeps the registry in force up to date with its file: at once on request, else within two seconds."""

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
LET_GO_PER_TURN = 200
SLOW_LOAD_S = 30.0
"""A load that takes this long is told; it is probably a dead network disk."""

Load: TypeAlias = Callable[[Snapshot], LoadedRegistry | None]

_log = logging.getLogger("sidecar.registry")


class RegistryWatch:
    """
    Puts a new snapshot into force when the registry file changes.

    Looking, reading and compiling happen in a thread of their own; only the swap is on the event loop,
    and it is one assignment. Whatever goes wrong, the registry in force stays.
    """

    def __init__(
        self,
        source: RegistrySource,
        decider: Decider,
        metrics: Metrics,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        """Keep *decider* up to date with *source*; count in *metrics*."""
        self._source = source
        self._decider = decider
        self._metrics = metrics
        self._poll_interval_s = poll_interval_s
        self._episode = ReadEpisode(metrics, "registry", source.file)
        self._asked = asyncio.Event()
        self._thread = BackgroundThread("registry")

    def reload(self) -> None:
        """Read the file at once, whether it seems to have changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                is_asked = await self._wait()
                load = self._source.load if is_asked else self._source.look
                await self._take_up(load, is_asked)
        finally:
            self._source.cancel()
            self._thread.close()

    async def _wait(self) -> bool:
        """Until the next look is due or a reload is asked for; True = it was asked for."""
        interval_s = min(SETTLE_INTERVAL_S, self._poll_interval_s)
        if not self._source.is_settling:
            interval_s = self._poll_interval_s
        try:
            await asyncio.wait_for(self._asked.wait(), interval_s)
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _take_up(self, load: Load, is_asked: bool) -> None:
        loading = self._thread.run(partial(load, self._decider.snapshot))
        while not (await asyncio.wait({loading}, timeout=SLOW_LOAD_S))[0]:
            log_event(_log, logging.WARNING, "reading the registry takes long", file=self._source.file)
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
                "registry refused, the former one stays in force",
                file=self._source.file,
                mistakes=error.total,
                faults=[str(fault) for fault in error.faults],
            )
        except Exception:  # a fault of ours must not end the watch
            self._count("failed")
            _log.exception("registry not loaded, the former one stays in force")
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
        announce(loaded, self._source.file, self._metrics)
        await let_go(retired)


def retired_by(before: Snapshot, after: Snapshot) -> list[CompiledIntegration]:
    """What *after* did not take over from *before*."""
    return [
        compiled for id, compiled in before.integrations.items() if after.integrations.get(id) is not compiled
    ]


async def let_go(retired: list[CompiledIntegration]) -> None:
    """
    Free *retired*, some in each turn of the event loop.

    An integration and its credentials refer to each other. Parted here, they need no garbage
    collection, which would walk over the whole registry with the interpreter locked.
    """
    while retired:
        for compiled in retired[-LET_GO_PER_TURN:]:
            compiled.credentials = ()
            compiled.fragments.clear()
        del compiled
        del retired[-LET_GO_PER_TURN:]
        await asyncio.sleep(0)


def tell_registry(snapshot: Snapshot, metrics: Metrics) -> None:
    """Tell metrics which registry is in force now."""
    metrics.set("sidecar_registry_integrations", to=len(snapshot.integrations))
    metrics.set("sidecar_registry_credentials", to=len(snapshot.credentials))
    metrics.set("sidecar_registry_loaded_timestamp_seconds", to=int(time.time()))


def announce(loaded: LoadedRegistry, file: str, metrics: Metrics) -> None:
    """Tell logs and metrics which registry is in force now."""
    tell_registry(loaded.snapshot, metrics)
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
        log_event(_log, logging.WARNING, "odd in the registry", at=str(warning))

"""
One process that decides: start, run, reload on SIGHUP, drain on SIGTERM.

Stopping is in this order, so that no request fails: report that it is not ready (health, /readyz), close
the listening sockets, tell clients to reconnect elsewhere, let running calls end, then close.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

import uvloop

from sidecar.observe.build import VERSION
from sidecar.observe.logs import LineHandler, log_event, set_up_logging
from sidecar.observe.metrics import Metrics
from sidecar.process.config import Config
from sidecar.process.listeners import Served, deciding_kinds, replaces_another, texts_of
from sidecar.process.operating_system import OrphanReaper, raise_open_files_limit
from sidecar.process.readiness import Component
from sidecar.process.registry_watch import announce
from sidecar.process.settings import DECIDING_KINDS, SUPERVISED_KINDS
from sidecar.process.shutdown import (
    EXIT_FORCED,
    EXIT_STOPPED,
    STOP_SIGNALS,
    StartError,
    StopSignals,
    StopStep,
    ignore_stop_signals,
)
from sidecar.process.wiring import LoadedConfig, Sidecar, build_sidecar, warn
from sidecar.transports.http1.server import STOP_TIMEOUT_S

END_TIMEOUT_S = 5.0
YOUNG_OBJECTS_MAX = 20_000
"""Objects that live before the collector looks for garbage among them: calls under way are none, and Python's
700 are reached by every burst of them."""

WITHOUT_STORE_S = 5.0
"""How long a start waits for a store that does not answer, where nobody else serves meanwhile."""
UNTIL_READY_S = 120.0
"""How long a start may take to load the registry."""

_log = logging.getLogger("sidecar.process")

Serving: TypeAlias = Callable[[Served], None]
"""Called once it serves, with where it does."""
Make: TypeAlias = "Callable[[LoadedConfig, Sidecar, LineHandler], Process]"
"""Makes the process that runs a sidecar."""


@dataclass(frozen=True, slots=True)
class StartTimeouts:
    """
    How long a start waits for registry and store before it listens.

    `without_store_s` holds while the store has not answered: then answers by policy are better than none.
    """

    without_store_s: float = WITHOUT_STORE_S
    until_ready_s: float = UNTIL_READY_S


def run(config: Config, metrics: Metrics, make: Make) -> int:
    """
    Run the process that *make* makes, counting in *metrics*; return the exit code.

    Raises:
        FileFaultsError: the rules or the registry hold mistakes.
        ListenError: an endpoint cannot be bound or its TLS files cannot be used.
    """
    raise_open_files_limit()
    log = config.settings.log
    logs = set_up_logging(
        log.level, log.format, sys.stderr, lambda: metrics.add("sidecar_log_lines_dropped_total")
    )
    try:
        loaded = LoadedConfig(config)
        warn(loaded)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_made(make, loaded, metrics, logs))
    finally:
        logs.close()


async def _made(make: Make, loaded: LoadedConfig, metrics: Metrics, logs: LineHandler) -> int:
    """Make the process on the event loop, which its parts need, and run it."""
    return await make(loaded, await build_sidecar(loaded, metrics), logs).run()


class Process:
    """One run of a sidecar: what happens between start and end, and at signals."""

    def __init__(
        self,
        loaded: LoadedConfig,
        sidecar: Sidecar,
        logs: LineHandler,
        on_serving: Serving | None = None,
    ) -> None:
        """Run *sidecar*, which was built by *loaded*; *on_serving* is called once it serves."""
        self._loaded = loaded
        self._logs = logs
        self._sidecar = sidecar
        self._on_serving = on_serving
        self.timeouts = StartTimeouts()
        self._changed = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._stop_signals = StopSignals(asyncio.get_running_loop().time)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """
        Serve until told to stop, then drain; return the exit code.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files cannot be used.
            StartError: another process serves here, and this one did not become ready to replace it.
        """
        self.handle_signals()
        try:
            await self._run()
        finally:
            if self._sidecar.followed is not None:
                await self._sidecar.followed.close()
        log_event(_log, logging.INFO, "stopped")
        ignore_stop_signals()
        return EXIT_STOPPED

    async def _run(self) -> None:
        listeners = self._sidecar.listeners
        try:
            replaces = self._replaces()
            if not replaces:
                await listeners.start(SUPERVISED_KINDS)
            self.begin()
            if await self._may_listen(replaces):
                await listeners.start()
                self._report_serving(listeners.served)
                self.on_serving(listeners.served)
                await self._stop_requested.wait()
                await self._drain()
        finally:
            await self._end_tasks()
            await listeners.drain(STOP_TIMEOUT_S)

    def _replaces(self) -> bool:
        return replaces_another(self._sidecar.config)

    def begin(self) -> None:
        """Watch or follow the registry, connect to the store."""
        sidecar = self._sidecar
        if sidecar.watch is not None and self._loaded.source is not None:
            announce(self._loaded.registry, self._loaded.source.file, sidecar.metrics)
            self.spawn(sidecar.watch.run())
        if sidecar.followed is not None:
            self.spawn(sidecar.followed.run(self._state))
        else:
            self._state("registry", True, "none" if sidecar.watch is None else "loaded")
        if sidecar.shared is not None:
            self.spawn(sidecar.shared.run(self._state))

    async def _may_listen(self, replaces: bool) -> bool:
        """
        Wait for registry and store, within bounds; False = a stop was requested before.

        Raises:
            StartError: they are not there in time, and another process serves meanwhile.
        """
        readiness = self._sidecar.readiness
        started_s = asyncio.get_running_loop().time()
        while readiness.unready_before_serving and not self._stop_requested.is_set():
            has_store = readiness.components.get("store", Component(True, "")).is_ready
            bound_s = self.timeouts.until_ready_s if has_store or replaces else self.timeouts.without_store_s
            waited_s = asyncio.get_running_loop().time() - started_s
            if waited_s >= bound_s:
                self._give_up_waiting(replaces, bound_s)
                break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(bound_s - waited_s, self.timeouts.without_store_s)):
                    await self._changed.wait()
        return not self._stop_requested.is_set()

    def _give_up_waiting(self, replaces: bool, waited_s: float) -> None:
        lacks = self._sidecar.readiness.unready_before_serving
        if replaces:
            raise StartError(
                f"not ready within {waited_s:g} s ({lacks}), so the sidecar that serves these addresses keeps"
                " them; see that the store answers and start again"
            )
        log_event(_log, logging.WARNING, "listening although not ready", lacks=lacks, waited_s=waited_s)

    def _report_serving(self, served: Served) -> None:
        """Everything is bound: say that we serve."""
        for kind in deciding_kinds(self._sidecar.config):
            self._state(kind, True, "serving")
        # What was loaded lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS_MAX)
        log_event(
            _log,
            logging.INFO,
            "serving",
            version=VERSION,
            pid=os.getpid(),
            transport=self._loaded.config.settings.transport,
            **texts_of(served),
        )

    def _state(self, name: str, is_ready: bool, state: str) -> None:
        """A component is in another state: tell it, and whether the process takes calls."""
        sidecar = self._sidecar
        sidecar.readiness.set(name, is_ready, state)
        for service in sidecar.health_services:
            sidecar.health.set_serving(service, sidecar.readiness.is_ready)
        self._changed.set()

    async def _drain(self) -> None:
        sidecar = self._sidecar
        timeout_s = sidecar.config.settings.drain_timeout_s
        log_event(_log, logging.INFO, "draining", timeout_s=timeout_s)
        for kind in deciding_kinds(sidecar.config):
            sidecar.readiness.set(kind, False, "draining")
        sidecar.health.drain()
        if not await sidecar.listeners.drain(timeout_s, DECIDING_KINDS):
            log_event(_log, logging.WARNING, "calls were cut off at the end of the drain")

    def on_serving(self, served: Served) -> None:
        """Told once that it serves, and where."""
        if self._on_serving is not None:
            self._on_serving(served)

    def handle_signals(self) -> None:
        """Have signals call `stop` and `reload`, and reap orphans."""
        loop = asyncio.get_running_loop()
        OrphanReaper().watch(loop)
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop, number)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    def stop(self, number: signal.Signals) -> None:
        """Drain at the first signal, end at once at a later one; see `StopSignals`."""
        step = self._stop_signals.receive()
        if step is StopStep.FORCE:
            log_event(_log, logging.WARNING, "stopped at once", signal=number.name)
            self._logs.close()
            os._exit(EXIT_FORCED)
        if step is StopStep.DRAIN:
            log_event(_log, logging.INFO, "shutdown requested", signal=number.name)
            self._stop_requested.set()
            self._changed.set()

    def reload(self) -> None:
        """Read the registry and the TLS files again."""
        log_event(_log, logging.INFO, "reload requested")
        sidecar = self._sidecar
        if sidecar.watch is not None:
            sidecar.watch.reload()
        if sidecar.followed is not None:
            sidecar.followed.reload()
        sidecar.listeners.reload_tls()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* beside everything else; it ends with the run."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_TIMEOUT_S)

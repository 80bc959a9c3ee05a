"""
One process that decides: start, run, reload on SIGHUP, drain on SIGTERM.

A drain fails no request: the process reports that it is not ready (health, /readyz), closes the listening
sockets, tells clients to reconnect elsewhere, waits for running calls, and closes the connections.
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
from sidecar.process.expiries import watch_credentials
from sidecar.process.listeners import Served, deciding_kinds, replaces_another, texts_of
from sidecar.process.loop_lag import measure_loop_lag
from sidecar.process.operating_system import (
    READY,
    STOPPING,
    OrphanReaper,
    notify_systemd,
    raise_open_files_limit,
    reloading,
)
from sidecar.process.readiness import Component
from sidecar.process.registry_watch import report_registry
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
"""New objects before a garbage collection: running calls are no garbage, and a burst of them creates more
than Python's default of 700."""

WITHOUT_STORE_S = 5.0
"""How long a start waits for a store that does not answer, if no other process serves meanwhile."""
RANK_INTERVAL_S = 5.0
UNTIL_READY_S = 120.0
"""How long a start may take to load the registry."""

_log = logging.getLogger("sidecar.process")

Serving: TypeAlias = Callable[[Served], None]
"""Called with the endpoints once all of them are served."""
Make: TypeAlias = "Callable[[LoadedConfig, Sidecar, LineHandler], Process]"
"""Creates the process that runs a sidecar."""


@dataclass(frozen=True, slots=True)
class StartTimeouts:
    """
    How long a start waits for registry and store before it listens.

    `without_store_s` applies while the store has not answered: decisions by policy are better than none.
    """

    without_store_s: float = WITHOUT_STORE_S
    until_ready_s: float = UNTIL_READY_S


def run(config: Config, metrics: Metrics, make: Make) -> int:
    """
    Run the process that *make* creates, counting in *metrics*; return the exit code.

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
            return runner.run(_run_process(make, loaded, metrics, logs))
    finally:
        logs.close()


async def _run_process(make: Make, loaded: LoadedConfig, metrics: Metrics, logs: LineHandler) -> int:
    """Create the process on the event loop, which its parts need, and run it."""
    return await make(loaded, await build_sidecar(loaded, metrics), logs).run()


class Process:
    """One run of a sidecar, from start to drain, with its signal handling."""

    def __init__(
        self, loaded: LoadedConfig, sidecar: Sidecar, logs: LineHandler, on_serving: Serving | None = None
    ) -> None:
        """Run *sidecar*, built from *loaded*; *on_serving* is called once it serves."""
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
        Serve until a stop signal, then drain; return the exit code.

        Raises:
            ListenError: an endpoint cannot be bound or its TLS files cannot be used.
            StartError: this process did not become ready to replace the one that serves its addresses.
        """
        self.handle_signals()
        try:
            await self._run()
        finally:
            if self._sidecar.followed is not None:
                await self._sidecar.followed.close()
            if self._sidecar.tracing is not None:
                await self._sidecar.tracing.close()
        log_event(_log, logging.INFO, "stopped")
        ignore_stop_signals(asyncio.get_running_loop())
        return EXIT_STOPPED

    async def _run(self) -> None:
        listeners = self._sidecar.listeners
        try:
            replaces = self._replaces()
            if not replaces:
                await listeners.start(SUPERVISED_KINDS)
            self.begin()
            if await self._wait_until_ready(replaces):
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
        """Start to watch or follow the registry, to connect to the store, and to rank integrations."""
        sidecar = self._sidecar
        self.spawn(self._rank_integrations())
        self.spawn(measure_loop_lag(sidecar.metrics))
        decider = sidecar.decider
        self.spawn(watch_credentials(lambda: decider.snapshot, sidecar.metrics, decider.clock_us))
        if sidecar.watch is not None and self._loaded.source is not None:
            report_registry(self._loaded.registry, self._loaded.source.file, sidecar.metrics)
            self.spawn(sidecar.watch.run())
        if sidecar.followed is not None:
            self.spawn(sidecar.followed.run(self._set_state))
        else:
            self._set_state("registry", True, "none" if sidecar.watch is None else "loaded")
        if sidecar.shared is not None:
            self.spawn(sidecar.shared.run(self._set_state))
        if sidecar.rate_limits is not None and self._loaded.rate_limits is not None:
            sidecar.rate_limits.on_state = self._set_state
            self._set_state("rate_limits", True, "loaded")
            sidecar.rate_limits.report(self._loaded.rate_limits)
            self.spawn(sidecar.rate_limits.run())

    async def _rank_integrations(self) -> None:
        """Keep the metrics of single integrations about those with the most traffic."""
        while True:
            await asyncio.sleep(RANK_INTERVAL_S)
            self._sidecar.decider.rows.rank()

    async def _wait_until_ready(self, replaces: bool) -> bool:
        """
        Wait for registry and store within `timeouts`; False = a stop was requested.

        Raises:
            StartError: they are not ready in time, and another process serves meanwhile.
        """
        readiness = self._sidecar.readiness
        started_s = asyncio.get_running_loop().time()
        while readiness.unready_before_serving and not self._stop_requested.is_set():
            has_store = readiness.components.get("store", Component(True, "")).is_ready
            bound_s = self.timeouts.until_ready_s if has_store or replaces else self.timeouts.without_store_s
            waited_s = asyncio.get_running_loop().time() - started_s
            if waited_s >= bound_s:
                self._stop_waiting(replaces, bound_s)
                break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(bound_s - waited_s, self.timeouts.without_store_s)):
                    await self._changed.wait()
        return not self._stop_requested.is_set()

    def _stop_waiting(self, replaces: bool, waited_s: float) -> None:
        unready = self._sidecar.readiness.unready_before_serving
        if replaces:
            raise StartError(
                f"not ready within {waited_s:g} s ({unready}), so the sidecar that serves these addresses"
                " keeps them; check the store and start again"
            )
        log_event(_log, logging.WARNING, "listening although not ready", lacks=unready, waited_s=waited_s)

    def _report_serving(self, served: Served) -> None:
        """Report that every endpoint is bound and served."""
        for kind in deciding_kinds(self._sidecar.config):
            self._set_state(kind, True, "serving")
        # Loaded objects live as long as the process: exclude them from garbage collection.
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

    def _set_state(self, name: str, is_ready: bool, state: str) -> None:
        """Set a component's state, and the health services by the readiness of the process."""
        sidecar = self._sidecar
        sidecar.readiness.set(name, is_ready, state)
        for service in sidecar.health_services:
            sidecar.health.set_serving(service, sidecar.readiness.is_ready)
        self._changed.set()

    async def _drain(self) -> None:
        sidecar = self._sidecar
        timeout_s = sidecar.config.settings.drain_timeout_s
        log_event(_log, logging.INFO, "draining", timeout_s=timeout_s)
        sidecar.metrics.set("sidecar_draining", to=1)
        for kind in deciding_kinds(sidecar.config):
            sidecar.readiness.set(kind, False, "draining")
        sidecar.health.drain()
        if not await sidecar.listeners.drain(timeout_s, DECIDING_KINDS):
            log_event(_log, logging.WARNING, "drain timed out: unfinished calls were aborted")

    def on_serving(self, served: Served) -> None:
        """Called once the process serves, with its endpoints."""
        if self._on_serving is not None:
            self._on_serving(served)

    def handle_signals(self) -> None:
        """Call `stop` and `reload` on signals, and reap orphans."""
        loop = asyncio.get_running_loop()
        OrphanReaper().watch(loop)
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop, number)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    def stop(self, number: signal.Signals) -> None:
        """Drain at the first stop signal, end at once at a later one; see `StopSignals`."""
        step = self._stop_signals.receive()
        if step is StopStep.FORCE:
            log_event(_log, logging.WARNING, "stopped at once", signal=number.name)
            self._logs.close()
            os._exit(EXIT_FORCED)
        if step is StopStep.DRAIN:
            log_event(_log, logging.INFO, "shutdown requested", signal=number.name)
            notify_systemd(STOPPING)
            self._stop_requested.set()
            self._changed.set()

    def reload(self) -> None:
        """Read the registry and the TLS files again."""
        log_event(_log, logging.INFO, "reload requested")
        notify_systemd(reloading())
        sidecar = self._sidecar
        if sidecar.watch is not None:
            sidecar.watch.reload()
        if sidecar.rate_limits is not None:
            sidecar.rate_limits.reload()
        if sidecar.followed is not None:
            sidecar.followed.reload()
        sidecar.listeners.reload_tls()
        notify_systemd(READY)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* as a task that ends with the process."""

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=END_TIMEOUT_S)

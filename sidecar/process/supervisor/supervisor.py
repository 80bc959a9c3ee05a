"""The supervisor: starts, restarts, replaces and drains workers, and serves their metrics and admin API."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

import uvloop

from sidecar.domain.changes import Position
from sidecar.observe.build import VERSION
from sidecar.observe.file_reading import RETRY_INTERVAL_S, ReadEpisode
from sidecar.observe.logs import log_event, set_up_logging
from sidecar.observe.shared import WorkerCounts
from sidecar.observe.table import TABLE, WORKER_GAUGE_RULES
from sidecar.process.admin_http import AdminApp
from sidecar.process.config import Config
from sidecar.process.config_checks import NO_CONTROL_PLANE
from sidecar.process.control_plane import sealer_of
from sidecar.process.followed_registry import IN_FORCE_TIMEOUT_S
from sidecar.process.listeners import (
    HeldPorts,
    Listeners,
    Served,
    endpoints,
    own_endpoint,
    replaces_another,
    texts_of,
)
from sidecar.process.operating_system import (
    READY,
    STOPPING,
    OrphanReaper,
    notify_systemd,
    raise_open_files_limit,
    reloading,
)
from sidecar.process.readiness import WorkersReadiness
from sidecar.process.run import Serving
from sidecar.process.settings import DECIDING_KINDS, SUPERVISED_KINDS
from sidecar.process.shutdown import (
    EXIT_FORCED,
    EXIT_STOPPED,
    STOP_SIGNALS,
    StopSignals,
    StopStep,
    ignore_stop_signals,
)
from sidecar.process.supervisor.admin_api import SupervisedAdminApi
from sidecar.process.supervisor.log_process import LogProcess
from sidecar.process.supervisor.process import FrameSocket, WorkerProcess
from sidecar.process.supervisor.resources import Priority, WorkerHealth, WorkerUsage
from sidecar.process.supervisor.slot import Launch, Slot
from sidecar.process.supervisor.timing import WORKER_TIMEOUTS, WorkerTimeouts
from sidecar.process.wiring import supervised_servers
from sidecar.sources.file_faults import FileFaultsError
from sidecar.transports.http1.server import STOP_TIMEOUT_S
from sidecar.transports.http1.work import OWN_LOOP
from sidecar.transports.server import ListenError

BEAT_CHECK_INTERVAL_S = 1.0
KILLED_TIMEOUT_S = 5.0
"""How long killed processes may take to end; only one stuck in the kernel takes longer."""

Reload: TypeAlias = Callable[[], Config]
"""Reads the configuration again and checks it; raises FileFaultsError."""

_log = logging.getLogger("sidecar.supervisor")


@dataclass(frozen=True, slots=True)
class SupervisorPlan:
    """
    What to supervise: `count` workers that serve `config`.

    `reload` reads the configuration for SIGHUP. `rolls` False = SIGHUP is passed on to the workers instead of
    replacing them, because a successor would start with full buckets.
    """

    config: Config
    count: int
    reload: Reload
    timeouts: WorkerTimeouts = WORKER_TIMEOUTS
    rolls: bool = True


def supervise(plan: SupervisorPlan, on_serving: Serving = lambda served: None) -> int:
    """
    Run workers until a stop signal; return the exit code. *on_serving* is called once all of them serve.

    Raises:
        FileFaultsError, ListenError: a worker found a mistake at its first start.
        StartError: a worker ended for another reason before all of them served.
    """
    raise_open_files_limit()
    log_settings = plan.config.settings.log
    counts = WorkerCounts(TABLE, WORKER_GAUGE_RULES)
    logs = set_up_logging(
        log_settings.level,
        log_settings.format,
        sys.stderr,
        lambda: counts.add("sidecar_log_lines_dropped_total"),
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Supervisor(plan, counts, runner.get_loop()).run(on_serving))
    finally:
        logs.close()


class Supervisor:
    """One run of the supervisor."""

    def __init__(self, plan: SupervisorPlan, counts: WorkerCounts, loop: asyncio.AbstractEventLoop) -> None:
        """Start and bind nothing before `run`."""
        self._config = plan.config
        self._reload = plan.reload
        self._counts = counts
        self._loop = loop
        self._ports = {kind: HeldPorts() for kind in DECIDING_KINDS}
        self._priority = Priority()
        self._rolls = plan.rolls
        self._replaces = False
        self._slots = tuple(
            Slot(index, loop, counts, self._on_change, plan.timeouts) for index in range(plan.count)
        )
        self._log: LogProcess | None = None
        self._orphans = OrphanReaper(self._child_pids)
        counts.collect_along(WorkerUsage(self._worker_pids, lambda: self._orphans.cpu_us))
        counts.collect_along(WorkerHealth(self._slots))
        counts.set("sidecar_workers_wanted", to=plan.count)
        counts.top.listed_max = plan.config.settings.integration_series_max
        # Only workers follow the registry, and this metric is the least value of all processes.
        counts.set("sidecar_registry_in_touch", to=1)
        readiness = WorkersReadiness(
            counts, lambda: {f"worker {slot.index}": slot.component for slot in self._slots}
        )
        app = AdminApp(counts, readiness, OWN_LOOP, NO_CONTROL_PLANE)
        self._admin_api = SupervisedAdminApi(app, counts, self._put_in_force)
        self._read_episode = ReadEpisode(counts, "configuration", plan.config.tree.file)
        servers = supervised_servers(plan.config, app, counts, readiness, OWN_LOOP)
        self._listeners = Listeners(plan.config, servers)
        self._changed = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._stop_signals = StopSignals(loop.time)
        self._roll_requested = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, on_serving: Serving) -> int:
        """Start, run and stop; see `supervise`."""
        self._handle_signals()
        try:
            await self._open_admin_api(self._config)
            if self._config.settings.decision_log.is_on:
                self._log = LogProcess(self._config, self._counts, self._priority)
                self._log.start()
            launch = self._launch(self._config)
            self._replaces = replaces_another(self._config, len(self._slots))
            if not self._replaces:
                await self._listeners.start()
            for slot in self._slots:
                slot.start(launch)
            if await self._wait_until_serving():
                await self._listeners.start()
                self._replaces = False
                self._start_serving(on_serving)
                await self._stop_requested.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await self._end_workers()
            if self._log is not None:
                await self._log.end()
            await self._listeners.drain(STOP_TIMEOUT_S)
            await self._admin_api.close()
            for ports in self._ports.values():
                ports.close()
            self._priority.close()
        log_event(_log, logging.INFO, "stopped")
        ignore_stop_signals(self._loop)
        return EXIT_FORCED if any(slot.was_killed for slot in self._slots) else EXIT_STOPPED

    def _launch(self, config: Config) -> Launch:
        """Reserve the ports of *config*; return what starts a worker on them."""
        held = {kind: ports.hold(endpoints(config, kind)) for kind, ports in self._ports.items()}
        workers = len(self._slots)
        log = None
        if self._log is not None and config.settings.decision_log.is_on:
            log = FrameSocket(self._log.frames_fd, self._log.worker_ended)

        def launch(index: int, is_successor: bool) -> WorkerProcess:
            own = {
                kind: tuple(own_endpoint(kind, endpoint, index, workers) for endpoint in each)
                for kind, each in held.items()
            }
            replaces = is_successor or self._replaces
            return WorkerProcess(index, config, own, self._counts, self._priority, replaces, log)

        return launch

    async def _open_admin_api(self, config: Config) -> None:
        if config.serves_admin_api:
            self._priority.lower()
        await self._admin_api.open(config)

    async def _put_in_force(self, position: Position) -> bool:
        """Wait until all workers decide by the change at *position*; False = not in time."""
        workers = [worker for slot in self._slots for worker in slot.workers]
        ordered = (worker.put_in_force(position, IN_FORCE_TIMEOUT_S) for worker in workers)
        return all(await asyncio.gather(*ordered))

    async def _wait_until_serving(self) -> bool:
        """Wait until every worker serves; False = stop requested. The slots' timeouts bound the wait."""
        while not all(slot.is_serving for slot in self._slots):
            for slot in self._slots:
                if slot.start_error is not None:
                    raise slot.start_error
            if self._stop_requested.is_set():
                return False
            await self._next_change()
        return True

    def _served(self) -> Served:
        """The endpoints of workers and supervisor."""
        by_workers = [slot.report.served or {} for slot in self._slots]
        return dict(self._listeners.served) | {
            kind: tuple(dict.fromkeys(each for served in by_workers for each in served.get(kind, ())))
            for kind in DECIDING_KINDS
        }

    def _start_serving(self, on_serving: Serving) -> None:
        served = self._served()
        self._spawn(self._run_rolling_restarts())
        self._spawn(self._check_beats())
        log_event(
            _log,
            logging.INFO,
            "supervising",
            version=VERSION,
            pid=os.getpid(),
            workers=len(self._slots),
            transport=self._config.settings.transport,
            **texts_of(served),
        )
        on_serving(served)

    async def _end_workers(self) -> None:
        """Drain the workers, kill those that exceed their timeout, and wait for their end."""
        longest_s = max(slot.end_timeout_s for slot in self._slots)
        if longest_s:
            log_event(_log, logging.INFO, "draining the workers", timeout_s=longest_s)
        for slot in self._slots:
            slot.stop()
        try:
            async with asyncio.timeout(longest_s + KILLED_TIMEOUT_S):
                while not all(slot.is_empty for slot in self._slots):
                    await self._next_change()
        except TimeoutError:
            log_event(_log, logging.ERROR, "workers did not end after SIGKILL")

    def _handle_signals(self) -> None:
        for number in STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._stop, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._roll_requested.set)
        self._orphans.watch(self._loop)

    def _worker_pids(self) -> list[int]:
        return [pid for slot in self._slots for pid in slot.pids]

    def _child_pids(self) -> list[int]:
        return [*self._worker_pids(), *(() if self._log is None else self._log.pids)]

    def _stop(self, number: signal.Signals) -> None:
        """Drain at the first stop signal, end at once at a later one; see `StopSignals`."""
        step = self._stop_signals.receive()
        if step is StopStep.FORCE:
            log_event(_log, logging.WARNING, "stopped at once", signal=number.name)
            for slot in self._slots:
                slot.stop()
                slot.kill()
        elif step is StopStep.DRAIN:
            log_event(_log, logging.INFO, "shutdown requested", signal=number.name)
            notify_systemd(STOPPING)
            self._stop_requested.set()
            self._changed.set()

    def _on_change(self) -> None:
        """Update the worker metrics and wake the waiting tasks, after a worker's state has changed."""
        slots = self._slots
        self._counts.set("sidecar_workers_running", to=sum(slot.is_serving for slot in slots))
        self._counts.set("sidecar_workers_ready", to=sum(slot.component.is_ready for slot in slots))
        self._changed.set()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _check_beats(self) -> None:
        while True:
            await asyncio.sleep(BEAT_CHECK_INTERVAL_S)
            for slot in self._slots:
                slot.check_beats()

    async def _run_rolling_restarts(self) -> None:
        while True:
            await self._roll_requested.wait()
            self._roll_requested.clear()
            notify_systemd(reloading())
            if self._rolls:
                await self._roll_and_count()
            else:
                await self._reload_workers()
            notify_systemd(READY)

    async def _roll_and_count(self) -> None:
        try:
            result = "ok" if await self._roll() else "failed"
        except Exception:  # a bug must not end the supervisor
            _log.exception("rolling restart failed")
            result = "failed"
        self._counts.add("sidecar_rolling_restarts_total", result)

    async def _reload_workers(self) -> None:
        """Make workers and listeners read their files again."""
        log_event(_log, logging.INFO, "reload requested")
        for slot in self._slots:
            slot.reload()
        self._listeners.reload_tls()

    async def _roll(self) -> bool:
        """Replace the workers one by one; False = a mistake was found, and the remaining workers stay."""
        log_event(_log, logging.INFO, "rolling restart")
        self._listeners.reload_tls()
        try:
            config = self._reload()
            sealer_of(config)  # checked first: the admin API must not refuse what workers already run
            launch = self._launch(config)
        except (FileFaultsError, ListenError) as error:
            self._roll_failed(0, str(error), error)
            return False
        self._read_episode.end()
        self._warn_restart_needed(config)
        for replaced, slot in enumerate(self._slots):
            failure = await self._replace(slot, launch)
            if failure:
                self._roll_failed(replaced, failure, slot.start_error)
                return False
        await self._open_admin_api(config)
        self._config = config
        for kind, ports in self._ports.items():
            ports.keep_only(endpoints(config, kind))
        log_event(_log, logging.INFO, "rolling restart done", workers=len(self._slots))
        return True

    async def _replace(self, slot: Slot, launch: Launch) -> str:
        """Replace the worker in *slot*; return '' or why it failed."""
        done: asyncio.Future[str] = self._loop.create_future()

        def on_replaced(failure: str) -> None:
            if not done.done():  # a stop may have cancelled it
                done.set_result(failure)

        slot.replace(launch, on_replaced)
        return await done

    def _roll_failed(self, replaced: int, why: str, error: Exception | None) -> None:
        """Log that a rolling restart failed; one that failed on an unreadable file is tried again."""
        if isinstance(error, FileFaultsError) and error.is_unreadable:
            self._read_episode.begin(str(error))
            self._loop.call_later(RETRY_INTERVAL_S, self._roll_requested.set)
            return
        self._read_episode.end()
        log_event(
            _log,
            logging.ERROR,
            "rolling restart failed; the remaining workers keep the previous configuration",
            replaced=replaced,
            workers=len(self._slots),
            why=why,
        )

    def _warn_restart_needed(self, config: Config) -> None:
        """Warn of changed settings that need a restart of the supervisor."""
        old, new = self._config.settings, config.settings
        changed = [
            key
            for key in ("workers", "log", "decision_log", "integration_series_max")
            if getattr(old, key) != getattr(new, key)
        ]
        changed += [
            f"listen.{kind}"
            for kind in SUPERVISED_KINDS
            if getattr(old.listen, kind) != getattr(new.listen, kind)
        ]
        if changed:
            log_event(
                _log, logging.WARNING, "changed settings need a restart; SIGHUP is not enough", keys=changed
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(work))

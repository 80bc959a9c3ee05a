"""
A worker slot: keeps one worker running, restarts it after a crash, and replaces it by a successor.

Plain calls and callbacks on one thread, with injected timers, so that tests control every event.
`on_exit` is called only after the ended worker's metrics are saved: see `process`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeAlias

from sidecar.domain.changes import Position
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.process.readiness import Component
from sidecar.process.shutdown import StartError
from sidecar.process.supervisor.messages import Report
from sidecar.process.supervisor.timing import WORKER_TIMEOUTS, RestartBackoff, Timer, Timers, WorkerTimeouts

_log = logging.getLogger("sidecar.supervisor")


class Worker(Protocol):
    """
    A worker process, as a slot uses it.

    It calls `on_report` when `report` has changed, and `on_exit` once, when the process has ended, with its
    exit code as in `subprocess` (negative = the signal that ended it).
    """

    pid: int
    end_timeout_s: float  # how long it may take from SIGTERM to its end, drain included
    report: Report
    on_report: Callable[[], None]
    on_exit: Callable[[int], None]

    @property
    def beat(self) -> int:
        """The heartbeat: a number that stops changing when the event loop blocks."""

    @property
    def loop_lag(self) -> tuple[int, int]:
        """How often the lag of the event loop was sampled, and the sum in ns; kept when the process ends."""

    def terminate(self) -> None:
        """Drain and end the worker (SIGTERM)."""

    def kill(self) -> None:
        """End the worker at once (SIGKILL)."""

    def reload(self) -> None:
        """Make the worker read registry and TLS files again (SIGHUP); it must serve."""

    async def put_in_force(self, position: Position, timeout_s: float) -> bool:
        """Wait until the worker decides by the change at *position*; False = not within *timeout_s*."""


Launch: TypeAlias = Callable[[int, bool], Worker]
"""
Starts the worker with the number given; True = as the successor of a process that serves. Raises OSError if
the system refuses.
"""


BEATS_REPORTED_MIN = 3
"""Missed beats, one a second, from which on a worker is reported as blocked; fewer may be a busy machine."""


class Stage(Enum):
    """The stage of a worker's life."""

    STARTING = auto()
    SERVING = auto()
    DRAINING = auto()


@dataclass(eq=False, slots=True)
class _WorkerRun:
    """A worker from its start to its end."""

    worker: Worker
    launch: Launch
    stage: Stage = Stage.STARTING
    served_since_s: float = 0.0
    timer: Timer | None = None
    killed_for: str = ""
    beat: int = 0
    beats_missed: int = 0


class Slot:
    """The slot of worker *index*."""

    def __init__(
        self,
        index: int,
        timers: Timers,
        metrics: Metrics,
        on_change: Callable[[], None] = lambda: None,
        timeouts: WorkerTimeouts = WORKER_TIMEOUTS,
        backoff: RestartBackoff | None = None,
    ) -> None:
        """Start nothing before `start`; *on_change* is called after every change of state."""
        self.index = index
        self._launch: Launch | None = None
        self._timers = timers
        self._metrics = metrics
        self._on_change = on_change
        self._timeouts = timeouts
        self._backoff = backoff or RestartBackoff()
        self._current: _WorkerRun | None = None
        self._successor: _WorkerRun | None = None
        self._draining: list[_WorkerRun] = []
        self.restarts = 0
        """How often a worker of this slot ended or was replaced."""
        self._ended_lag = (0, 0)
        self._restart: Timer | None = None
        self._on_replaced: Callable[[str], None] | None = None
        self._is_stopping = False
        self._problem = ""
        self.start_error: Exception | None = None
        """Why the last start failed; None = no start has failed yet."""
        self.was_killed = False
        """Whether a worker had to be killed after `stop`."""

    @property
    def report(self) -> Report:
        """The report of the current worker; an empty report without a worker."""
        return self._current.worker.report if self._current is not None else Report()

    @property
    def is_serving(self) -> bool:
        """Whether the current worker serves."""
        return self._current is not None and self._current.stage is Stage.SERVING

    @property
    def is_empty(self) -> bool:
        """Whether every process of this slot has ended."""
        return next(self._runs(), None) is None

    @property
    def pids(self) -> list[int]:
        """The process ids of this slot."""
        return [run.worker.pid for run in self._runs()]

    @property
    def workers(self) -> list[Worker]:
        """The workers of this slot, including those that start or drain."""
        return [run.worker for run in self._runs()]

    @property
    def component(self) -> Component:
        """The state of this slot for /readyz."""
        if self._is_stopping:
            return Component(False, "draining")
        if self._current is None:
            return Component(False, f"restarts: {self._problem}" if self._problem else "starting")
        if not self.is_serving:
            return Component(False, "starting")
        if self.beats_missed >= BEATS_REPORTED_MIN:
            state = f"blocked: its event loop stands still for {self.beats_missed} s"
            return Component(self.report.is_ready, state)
        return Component(self.report.is_ready, self.report.state)

    @property
    def beats_missed(self) -> int:
        """How many checks in a row, one a second, found the event loop of the serving worker blocked."""
        run = self._current
        return run.beats_missed if run is not None and run.stage is Stage.SERVING else 0

    @property
    def loop_lag(self) -> tuple[int, int]:
        """See `Worker`: of all workers that this slot has had, so that it never falls."""
        lags = [self._ended_lag, *(run.worker.loop_lag for run in self._runs())]
        return sum(samples for samples, _ in lags), sum(sum_ns for _, sum_ns in lags)

    @property
    def end_timeout_s(self) -> float:
        """How long the workers of this slot may take to end."""
        return max((run.worker.end_timeout_s for run in self._runs()), default=0.0)

    def start(self, launch: Launch) -> None:
        """Start a worker with *launch*, which also restarts it after a crash."""
        self._launch = launch
        self._restart = None
        self._current = self._launch_worker(launch, is_successor=False)
        if self._current is None:
            self._record_exit("start_failed", served_s=0.0)
        self._on_change()

    def replace(self, launch: Launch, on_replaced: Callable[[str], None]) -> None:
        """
        Start a successor with *launch*; when it is ready, drain and end the current worker.

        *on_replaced* is called with '' afterwards, or with the reason if the successor did not become ready:
        then the current worker stays. One replacement at a time.
        """
        self._on_replaced = on_replaced
        self._successor = self._launch_worker(launch, is_successor=True)
        if self._successor is None:
            self._end_replacement(str(self.start_error))
        self._on_change()

    def stop(self) -> None:
        """Drain and end every worker of this slot; kill those that exceed their timeout."""
        self._is_stopping = True
        if self._restart is not None:
            self._restart.cancel()
        for run in (self._current, self._successor):
            if run is not None:
                self._drain(run)
        self._current = self._successor = None
        self._on_change()

    def reload(self) -> None:
        """Make the current worker read its files again, if it serves; a starting worker reads them anyway."""
        if self._current is not None and self.is_serving:
            self._current.worker.reload()

    def kill(self) -> None:
        """Kill the draining workers."""
        for run in list(self._draining):
            self._kill_late(run)

    def check_beats(self) -> None:
        """Kill a worker whose event loop blocks; to be called every second."""
        for run in list(self._runs()):
            beat = run.worker.beat
            run.beats_missed = run.beats_missed + 1 if beat == run.beat else 0
            run.beat = beat
            if run.stage is Stage.SERVING and run.beats_missed >= self._timeouts.beats_missed_max:
                self._kill(run, "unresponsive")

    def _runs(self) -> Iterator[_WorkerRun]:
        yield from (run for run in (self._current, self._successor) if run is not None)
        yield from self._draining

    def _launch_worker(self, launch: Launch, *, is_successor: bool) -> _WorkerRun | None:
        try:
            worker = launch(self.index, is_successor)
        except OSError as error:
            self.start_error = StartError(f"worker {self.index} could not be started: {error}")
            self._problem = str(error)
            return None
        run = _WorkerRun(worker, launch)
        worker.on_report = lambda: self._on_report(run)
        worker.on_exit = lambda code: self._on_exit(run, code)
        run.timer = self._timers.call_later(self._timeouts.start_timeout_s, self._kill, run, "start_timeout")
        return run

    def _on_report(self, run: _WorkerRun) -> None:
        if run.stage is Stage.STARTING and run.worker.report.served is not None:
            run.stage = Stage.SERVING
            run.served_since_s = self._timers.time()
            if run is self._current:
                _cancel(run)
        if run is self._successor and run.worker.report.is_ready:
            self._promote(run)
        self._on_change()

    def _promote(self, run: _WorkerRun) -> None:
        """Make the successor the current worker."""
        _cancel(run)
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        predecessor, self._current, self._successor = self._current, run, None
        self._launch = run.launch
        self._backoff.reset()
        self._count_restart("rolling")
        if predecessor is None:
            self._end_replacement("")
        else:
            self._drain(predecessor)

    def _drain(self, run: _WorkerRun) -> None:
        _cancel(run)
        run.stage = Stage.DRAINING
        self._draining.append(run)
        run.timer = self._timers.call_later(run.worker.end_timeout_s, self._kill_late, run)
        run.worker.terminate()

    def _kill_late(self, run: _WorkerRun) -> None:
        self.was_killed = self.was_killed or self._is_stopping
        self._kill(run, "end_timeout")

    def _kill(self, run: _WorkerRun, reason: str) -> None:
        run.killed_for = run.killed_for or reason
        log_event(_log, logging.WARNING, "worker killed", worker=self.index, pid=run.worker.pid, why=reason)
        run.worker.kill()

    def _on_exit(self, run: _WorkerRun, code: int) -> None:
        _cancel(run)
        samples, sum_ns = run.worker.loop_lag
        self._ended_lag = self._ended_lag[0] + samples, self._ended_lag[1] + sum_ns
        reason, how = _restart_label(run, code), _exit_text(code)
        level = logging.INFO if run.stage is Stage.DRAINING else logging.ERROR
        log_event(_log, level, "worker ended", worker=self.index, pid=run.worker.pid, how=how)
        if run.stage is Stage.STARTING:
            self.start_error = run.worker.report.fault or StartError(self._failed_start(run, how))
        if run in self._draining:
            self._draining.remove(run)
            if self._successor is None and not self._is_stopping:
                self._end_replacement("")
        elif run is self._successor:
            self._successor = None
            self._count_restart(reason)
            self._end_replacement(self._failed_start(run, how))
            if self._current is None and self._restart is None:
                self._restart_later(0.0)
        else:
            self._current = None
            self._problem = f"{reason} ({how})"
            served_s = self._timers.time() - run.served_since_s if run.stage is Stage.SERVING else 0.0
            self._record_exit(reason, served_s)
        self._on_change()

    def _failed_start(self, run: _WorkerRun, how: str) -> str:
        who, report = f"worker {self.index}", run.worker.report
        if run.killed_for == "start_timeout":
            unready = report.unready or "it did not serve"
            return f"{who} was not ready within {self._timeouts.start_timeout_s:g} s ({unready})"
        if report.fault is not None:
            return f"{who}: {report.fault}"
        return f"{who} ended ({how}) before it was ready; see the log lines of this worker"

    def _record_exit(self, reason: str, served_s: float) -> None:
        """Count the exit and schedule a restart."""
        self._count_restart(reason)
        if self._successor is None and not self._is_stopping:
            self._restart_later(served_s)

    def _count_restart(self, reason: str) -> None:
        self.restarts += 1
        self._metrics.add("sidecar_worker_restarts_total", reason)

    def _restart_later(self, served_s: float) -> None:
        delay_s = self._backoff.next_s(served_s)
        self._restart = self._timers.call_later(delay_s, self.start, self._launch)
        log_event(
            _log, logging.WARNING, "worker restarts", worker=self.index, after_s=round(delay_s, 3),
            why=self._problem,
        )  # fmt: skip

    def _end_replacement(self, failure: str) -> None:
        on_replaced, self._on_replaced = self._on_replaced, None
        if on_replaced is not None:
            on_replaced(failure)


def _cancel(run: _WorkerRun) -> None:
    if run.timer is not None:
        run.timer.cancel()
        run.timer = None


def _restart_label(run: _WorkerRun, code: int) -> str:
    """The label of `sidecar_worker_restarts_total`."""
    if run.killed_for:
        return run.killed_for
    if run.stage is Stage.STARTING:
        return "start_failed"
    return "exited" if code == 0 else "crashed"


def _exit_text(code: int) -> str:
    """An exit code as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"

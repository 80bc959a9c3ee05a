"""
One worker's place: keeps a worker in it, restarts one that crashes, swaps it for a successor.

Plain calls and callbacks on one thread, with the timers handed in, so a test plays every turn of
events by hand. A worker that is found dead is not mourned before its counts are safe: see `process`.
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
from sidecar.process.supervisor.timing import PATIENCE, Patience, RestartBackoff, Timer, Timers

_log = logging.getLogger("sidecar.supervisor")


class Worker(Protocol):
    """
    A worker process, as its place sees it.

    It calls `on_report` when `report` has changed, and `on_exit` once, when it is gone, with its exit
    code as `subprocess` has it (negative = the signal that ended it).
    """

    pid: int
    end_timeout_s: float  # how long it may take from SIGTERM on, its drain included
    report: Report
    on_report: Callable[[], None]
    on_exit: Callable[[int], None]

    @property
    def beat(self) -> int:
        """A number that stands still when its event loop does."""

    def terminate(self) -> None:
        """Have it drain and end (SIGTERM)."""

    def kill(self) -> None:
        """End it now (SIGKILL)."""

    def reload(self) -> None:
        """Have it read registry and TLS files again (SIGHUP); it must serve."""

    async def put_in_force(self, position: Position, timeout_s: float) -> bool:
        """Have it decide by the change at *position*, if it decides; False = not within *timeout_s*."""


Launch: TypeAlias = Callable[[int, bool], Worker]
"""
Starts worker number so and so, as a successor of one that serves or not; raises OSError when the system
refuses.
"""


class Stage(Enum):
    """How far a worker has come."""

    STARTING = auto()
    SERVING = auto()
    LEAVING = auto()


@dataclass(eq=False, slots=True)
class _Life:
    """One worker from start to end."""

    worker: Worker
    launch: Launch
    stage: Stage = Stage.STARTING
    served_since_s: float = 0.0
    timer: Timer | None = None
    killed_for: str = ""
    beat: int = 0
    beats_missed: int = 0


class Slot:
    """The place of worker *index*."""

    def __init__(
        self,
        index: int,
        timers: Timers,
        metrics: Metrics,
        on_change: Callable[[], None] = lambda: None,
        patience: Patience = PATIENCE,
        backoff: RestartBackoff | None = None,
    ) -> None:
        """Nothing runs before `start`; *on_change* is called whenever anything about it has changed."""
        self.index = index
        self._launch: Launch | None = None
        self._timers = timers
        self._metrics = metrics
        self._on_change = on_change
        self._patience = patience
        self._backoff = backoff or RestartBackoff()
        self._incumbent: _Life | None = None
        self._successor: _Life | None = None
        self._leaving: list[_Life] = []
        self._restart: Timer | None = None
        self._on_replaced: Callable[[str], None] | None = None
        self._is_stopping = False
        self._trouble = ""
        self.start_error: Exception | None = None
        """Why the last start failed; None = none has failed yet."""
        self.was_killed = False
        """Whether a worker had to be killed after `stop`."""

    @property
    def report(self) -> Report:
        """What the worker in this place says; an empty report when there is none."""
        return self._incumbent.worker.report if self._incumbent is not None else Report()

    @property
    def is_serving(self) -> bool:
        """Whether the worker in this place serves."""
        return self._incumbent is not None and self._incumbent.stage is Stage.SERVING

    @property
    def is_empty(self) -> bool:
        """Whether no process is left."""
        return next(self._lives(), None) is None

    @property
    def pids(self) -> list[int]:
        """The processes of this place."""
        return [life.worker.pid for life in self._lives()]

    @property
    def workers(self) -> list[Worker]:
        """The workers of this place, those that start or leave included."""
        return [life.worker for life in self._lives()]

    @property
    def component(self) -> Component:
        """How this place is, for /readyz."""
        if self._is_stopping:
            return Component(False, "draining")
        if self._incumbent is None:
            return Component(False, f"restarts: {self._trouble}" if self._trouble else "starting")
        if not self.is_serving:
            return Component(False, "starting")
        return Component(self.report.is_ready, self.report.state)

    @property
    def end_timeout_s(self) -> float:
        """How long its workers may take to end."""
        return max((life.worker.end_timeout_s for life in self._lives()), default=0.0)

    def start(self, launch: Launch) -> None:
        """Start a worker by *launch*, which also starts it again should it crash."""
        self._launch = launch
        self._restart = None
        self._incumbent = self._begin(launch, is_successor=False)
        if self._incumbent is None:
            self._mourn("start_failed", served_s=0.0)
        self._on_change()

    def replace(self, launch: Launch, on_replaced: Callable[[str], None]) -> None:
        """
        Start a successor by *launch*; when it is ready, have the worker in place drain and end.

        *on_replaced* is called when that is done, with '', or when the successor did not become ready,
        with the reason; the worker in place stays then. One replacement at a time.
        """
        self._on_replaced = on_replaced
        self._successor = self._begin(launch, is_successor=True)
        if self._successor is None:
            self._end_replacement(str(self.start_error))
        self._on_change()

    def stop(self) -> None:
        """Have every worker of this place drain and end; those that do not are killed in time."""
        self._is_stopping = True
        if self._restart is not None:
            self._restart.cancel()
        for life in (self._incumbent, self._successor):
            if life is not None:
                self._leave(life)
        self._incumbent = self._successor = None
        self._on_change()

    def reload(self) -> None:
        """Have the worker in this place read its files again; one that starts has them to read yet."""
        if self._incumbent is not None and self.is_serving:
            self._incumbent.worker.reload()

    def kill(self) -> None:
        """End at once what `stop` has told to end."""
        for life in list(self._leaving):
            self._kill_leaving(life)

    def check_beats(self) -> None:
        """Kill a worker whose event loop stands still; to be called every second or so."""
        for life in list(self._lives()):
            beat = life.worker.beat
            life.beats_missed = life.beats_missed + 1 if beat == life.beat else 0
            life.beat = beat
            if life.stage is Stage.SERVING and life.beats_missed >= self._patience.beats_missed_max:
                self._kill(life, "unresponsive")

    def _lives(self) -> Iterator[_Life]:
        yield from (life for life in (self._incumbent, self._successor) if life is not None)
        yield from self._leaving

    def _begin(self, launch: Launch, *, is_successor: bool) -> _Life | None:
        try:
            worker = launch(self.index, is_successor)
        except OSError as error:
            self.start_error = StartError(f"worker {self.index} could not be started: {error}")
            self._trouble = str(error)
            return None
        life = _Life(worker, launch)
        worker.on_report = lambda: self._heard(life)
        worker.on_exit = lambda code: self._ended(life, code)
        life.timer = self._timers.call_later(
            self._patience.start_timeout_s, self._kill, life, "start_timeout"
        )
        return life

    def _heard(self, life: _Life) -> None:
        if life.stage is Stage.STARTING and life.worker.report.served is not None:
            life.stage = Stage.SERVING
            life.served_since_s = self._timers.time()
            if life is self._incumbent:
                _cancel(life)
        if life is self._successor and life.worker.report.is_ready:
            self._promote(life)
        self._on_change()

    def _promote(self, life: _Life) -> None:
        """The successor takes the place."""
        _cancel(life)
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        predecessor, self._incumbent, self._successor = self._incumbent, life, None
        self._launch = life.launch
        self._backoff.reset()
        self._metrics.add("sidecar_worker_restarts_total", "rolling")
        if predecessor is None:
            self._end_replacement("")
        else:
            self._leave(predecessor)

    def _leave(self, life: _Life) -> None:
        _cancel(life)
        life.stage = Stage.LEAVING
        self._leaving.append(life)
        life.timer = self._timers.call_later(life.worker.end_timeout_s, self._kill_leaving, life)
        life.worker.terminate()

    def _kill_leaving(self, life: _Life) -> None:
        self.was_killed = self.was_killed or self._is_stopping
        self._kill(life, "end_timeout")

    def _kill(self, life: _Life, reason: str) -> None:
        life.killed_for = life.killed_for or reason
        log_event(_log, logging.WARNING, "worker killed", worker=self.index, pid=life.worker.pid, why=reason)
        life.worker.kill()

    def _ended(self, life: _Life, code: int) -> None:
        _cancel(life)
        reason, how = _reason(life, code), _how(code)
        level = logging.INFO if life.stage is Stage.LEAVING else logging.ERROR
        log_event(_log, level, "worker ended", worker=self.index, pid=life.worker.pid, how=how)
        if life.stage is Stage.STARTING:
            self.start_error = life.worker.report.fault or StartError(self._failed_start(life, how))
        if life in self._leaving:
            self._leaving.remove(life)
            if self._successor is None and not self._is_stopping:
                self._end_replacement("")
        elif life is self._successor:
            self._successor = None
            self._metrics.add("sidecar_worker_restarts_total", reason)
            self._end_replacement(self._failed_start(life, how))
            if self._incumbent is None and self._restart is None:
                self._restart_later(0.0)
        else:
            self._incumbent = None
            self._trouble = f"{reason} ({how})"
            served_s = self._timers.time() - life.served_since_s if life.stage is Stage.SERVING else 0.0
            self._mourn(reason, served_s)
        self._on_change()

    def _failed_start(self, life: _Life, how: str) -> str:
        who, report = f"worker {self.index}", life.worker.report
        if life.killed_for == "start_timeout":
            lacking = report.lacking or "it did not serve"
            return f"{who} was not ready within {self._patience.start_timeout_s:g} s ({lacking})"
        if report.fault is not None:
            return f"{who}: {report.fault}"
        return f"{who} ended ({how}) before it was ready; its own lines say more"

    def _mourn(self, reason: str, served_s: float) -> None:
        """Count the worker that is gone, and see that there will be another."""
        self._metrics.add("sidecar_worker_restarts_total", reason)
        if self._successor is None and not self._is_stopping:
            self._restart_later(served_s)

    def _restart_later(self, served_s: float) -> None:
        delay_s = self._backoff.next_s(served_s)
        self._restart = self._timers.call_later(delay_s, self.start, self._launch)
        log_event(
            _log, logging.WARNING, "worker restarts", worker=self.index, after_s=round(delay_s, 3),
            why=self._trouble,
        )  # fmt: skip

    def _end_replacement(self, why_not: str) -> None:
        on_replaced, self._on_replaced = self._on_replaced, None
        if on_replaced is not None:
            on_replaced(why_not)


def _cancel(life: _Life) -> None:
    if life.timer is not None:
        life.timer.cancel()
        life.timer = None


def _reason(life: _Life, code: int) -> str:
    """The label of `sidecar_worker_restarts_total`."""
    if life.killed_for:
        return life.killed_for
    if life.stage is Stage.STARTING:
        return "start_failed"
    return "exited" if code == 0 else "crashed"


def _how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"

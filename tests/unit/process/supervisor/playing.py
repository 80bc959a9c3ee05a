"""A stage for `Slot`: timers that are fired by hand, and workers that do what a test has them do."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from sidecar.domain.changes import Position
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.process.readiness import Component
from sidecar.process.supervisor.messages import Report
from sidecar.process.supervisor.slot import Slot
from sidecar.process.supervisor.timing import BackoffLimits, RestartBackoff, WorkerTimeouts
from sidecar.transports.server import Endpoint

SERVED = {"grpc": (Endpoint(host="127.0.0.1", port=9191),)}
READY = Report(SERVED, {"grpc": Component(True, "serving")})
NOT_READY = Report(SERVED, {"grpc": Component(True, "serving"), "store": Component(False, "unreachable")})

CRASH = -signal.SIGSEGV

START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 13.0
BEATS_MISSED_MAX = 3
STABLE_S = 60.0


@dataclass(eq=False)
class ManualTimer:
    """A timer of `ManualTimers`."""

    due_s: float
    fire: Callable[[], object]
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Take it back."""
        self.is_cancelled = True


class ManualTimers:
    """Time that moves on request, and fires what is due on its way."""

    def __init__(self) -> None:
        """Begin at an odd moment, as a monotonic clock does."""
        self.now_s = 1_000.5
        self.timers: list[ManualTimer] = []

    def time(self) -> float:
        """The time."""
        return self.now_s

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: object) -> ManualTimer:
        """See `slot.Timers`."""
        timer = ManualTimer(self.now_s + delay, lambda: callback(*arguments))
        self.timers.append(timer)
        return timer

    @property
    def waiting(self) -> list[ManualTimer]:
        """The timers that will fire, soonest first."""
        self.timers = [timer for timer in self.timers if not timer.is_cancelled]
        return sorted(self.timers, key=lambda timer: timer.due_s)

    @property
    def next_s(self) -> float:
        """In how many seconds the next timer fires."""
        return self.waiting[0].due_s - self.now_s

    def advance(self, seconds: float) -> None:
        """Move on by *seconds*."""
        end_s = self.now_s + seconds
        while self.waiting and self.waiting[0].due_s <= end_s:
            timer = self.waiting[0]
            self.timers.remove(timer)
            self.now_s = max(self.now_s, timer.due_s)
            timer.fire()
        self.now_s = end_s


@dataclass(eq=False)
class PlayedWorker:
    """A worker process whose every move a test makes."""

    pid: int
    end_timeout_s: float = END_TIMEOUT_S
    report: Report = field(default_factory=Report)
    beat: int = 0
    loop_lag: tuple[int, int] = (0, 0)
    signals: list[signal.Signals] = field(default_factory=list)
    on_report: Callable[[], None] = lambda: None
    on_exit: Callable[[int], None] = lambda code: None

    def terminate(self) -> None:
        """Note SIGTERM."""
        self.signals.append(signal.SIGTERM)

    def kill(self) -> None:
        """Note SIGKILL."""
        self.signals.append(signal.SIGKILL)

    def reload(self) -> None:
        """Note SIGHUP."""
        self.signals.append(signal.SIGHUP)

    async def put_in_force(self, position: Position, timeout_s: float) -> bool:
        """Nothing is in the way."""
        return True

    def tell(self, report: Report) -> None:
        """Report."""
        self.report = report
        self.on_report()

    def end(self, code: int) -> None:
        """End with *code*, negative = by a signal."""
        self.on_exit(code)


class Stage:
    """One slot on its own."""

    def __init__(self) -> None:
        """Nothing is started; `refusal` set = the system refuses to start processes."""
        self.timers = ManualTimers()
        self.metrics = Metrics(TABLE)
        self.workers: list[PlayedWorker] = []
        self.successors: list[bool] = []
        self.refusal: OSError | None = None
        self.changes = 0
        self._pids = count(100)
        self.slot = Slot(
            3,
            self.timers,
            self.metrics,
            self._on_change,
            WorkerTimeouts(START_TIMEOUT_S, BEATS_MISSED_MAX),
            RestartBackoff(BackoffLimits(1.0, 8.0, STABLE_S), chance=lambda: 1.0),
        )

    def _on_change(self) -> None:
        self.changes += 1

    def launch(self, index: int, is_successor: bool) -> PlayedWorker:
        """Start a worker."""
        assert index == self.slot.index
        self.successors.append(is_successor)
        if self.refusal is not None:
            raise self.refusal
        self.workers.append(PlayedWorker(next(self._pids)))
        return self.workers[-1]

    @property
    def last(self) -> PlayedWorker:
        """The worker that was started last."""
        return self.workers[-1]

    def serve(self) -> PlayedWorker:
        """Start the slot, and have its worker be ready."""
        self.slot.start(self.launch)
        self.last.tell(READY)
        return self.last

    def crash_in_a_row(self, times: int) -> list[float]:
        """Have the worker crash as soon as it is ready, this many times; return the wait after each."""
        waits = []
        for _ in range(times):
            if waits:
                self.timers.advance(waits[-1])
                self.last.tell(READY)
            self.last.end(CRASH)
            waits.append(self.timers.next_s)
        return waits

    def replace(self) -> list[str]:
        """Ask for a successor; the list holds how it went, once that is known."""
        reported: list[str] = []
        self.slot.replace(self.launch, reported.append)
        return reported

    def restarts(self, reason: str) -> int:
        """How many restarts were counted for *reason*."""
        return self.metrics.value("sidecar_worker_restarts_total", reason)

"""One worker's place, through every turn of events."""

from __future__ import annotations

import signal

import pytest

from sidecar.process.readiness import Component
from sidecar.process.shutdown import StartError
from sidecar.process.supervisor.messages import Report
from sidecar.process.supervisor.resources import WorkerHealth
from sidecar.sources.file_faults import FileFault, FileFaultsError
from tests.unit.process.supervisor.playing import (
    BEATS_MISSED_MAX,
    CRASH,
    END_TIMEOUT_S,
    NOT_READY,
    READY,
    STABLE_S,
    START_TIMEOUT_S,
    Stage,
)


@pytest.fixture
def stage() -> Stage:
    """A slot that has not been started."""
    return Stage()


def test_start__serves_when_the_worker_says_so(stage: Stage) -> None:
    """A worker that runs is no worker that serves; that it serves is its own word."""
    stage.slot.start(stage.launch)
    assert (stage.slot.is_serving, stage.slot.component) == (False, Component(False, "starting"))
    stage.last.tell(NOT_READY)
    assert (stage.slot.is_serving, stage.slot.component) == (True, Component(False, "store: unreachable"))
    stage.last.tell(READY)
    assert (stage.slot.component, stage.slot.report) == (Component(True, "ready"), READY)
    assert stage.slot.pids == [stage.last.pid]


def test_start__leaves_no_timer_once_it_serves(stage: Stage) -> None:
    """A worker that serves has no deadline, ready or not: its store may be away for hours."""
    stage.slot.start(stage.launch)
    stage.last.tell(NOT_READY)
    assert stage.timers.waiting == []


def test_start__is_bounded(stage: Stage) -> None:
    """A worker that does not serve in time is killed, counted, and started again."""
    stage.slot.start(stage.launch)
    stage.timers.advance(START_TIMEOUT_S - 0.001)
    assert stage.last.signals == []
    stage.timers.advance(0.001)
    assert stage.last.signals == [signal.SIGKILL]
    stage.last.end(-signal.SIGKILL)
    assert stage.restarts("start_timeout") == 1
    assert isinstance(stage.slot.start_error, StartError)
    assert str(stage.slot.start_error) == "worker 3 was not ready within 20 s (it did not serve)"
    stage.timers.advance(0)
    assert len(stage.workers) == 2


def test_start__tells_the_mistake_that_the_worker_found(stage: Stage) -> None:
    """A mistake in a file arrives as it is, so the command can report it like its own."""
    fault = FileFaultsError([FileFault("registry.yaml", 3, "integrations", "is wrong")], 1)
    stage.slot.start(stage.launch)
    stage.last.tell(Report(fault=fault))
    stage.last.end(1)
    assert stage.slot.start_error is fault
    assert stage.restarts("start_failed") == 1


def test_start__says_how_a_worker_ended_that_said_nothing(stage: Stage) -> None:
    """Out of memory, a broken library: the signal is all there is to report."""
    stage.slot.start(stage.launch)
    stage.last.end(-signal.SIGKILL)
    assert (
        str(stage.slot.start_error)
        == "worker 3 ended (SIGKILL) before it was ready; see the log lines of this worker"
    )


def test_start__a_system_that_refuses_is_asked_again(stage: Stage) -> None:
    """No process, no memory: reported, counted, and tried again with back-off."""
    stage.refusal = BlockingIOError(11, "Resource temporarily unavailable")
    stage.slot.start(stage.launch)
    assert "could not be started" in str(stage.slot.start_error)
    assert stage.slot.is_empty
    stage.timers.advance(0)
    assert stage.restarts("start_failed") == 2
    stage.refusal = None
    stage.timers.advance(stage.timers.next_s)
    stage.last.tell(READY)
    assert stage.slot.component.is_ready


@pytest.mark.parametrize(
    ("code", "reason"), [(CRASH, "crashed"), (-signal.SIGKILL, "crashed"), (1, "crashed"), (0, "exited")]
)
def test_crash__is_counted_and_made_good_at_once(stage: Stage, code: int, reason: str) -> None:
    """A worker that ends without a stop request is replaced without a wait, the first time."""
    stage.serve().end(code)
    assert (stage.slot.is_serving, stage.restarts(reason)) == (False, 1)
    assert not stage.slot.component.is_ready
    assert stage.slot.component.state.startswith(f"restarts: {reason} (")
    stage.timers.advance(0)
    assert len(stage.workers) == 2
    stage.last.tell(READY)
    assert stage.slot.component == Component(True, "ready")


def test_crash__in_a_row_do_not_spin(stage: Stage) -> None:
    """A worker that always crashes is started less and less often: 1, 2, 4, 8, 8 ... seconds."""
    stage.serve()
    assert stage.crash_in_a_row(7) == [0, 1, 2, 4, 8, 8, 8]
    assert len(stage.workers) == 7


def test_crash__after_a_long_life_costs_no_wait(stage: Stage) -> None:
    """What happened long ago is forgiven."""
    stage.serve()
    stage.crash_in_a_row(3)
    stage.timers.advance(stage.timers.next_s)
    stage.last.tell(READY)
    stage.timers.advance(STABLE_S)
    stage.last.end(CRASH)
    assert stage.timers.next_s == 0


def test_crash__while_starting_lived_not_at_all(stage: Stage) -> None:
    """The time that a start took is no stable life, however long it was."""
    stage.serve().end(CRASH)
    stage.timers.advance(0)
    for wait_s in (1, 2):
        stage.timers.advance(START_TIMEOUT_S)
        stage.last.end(-signal.SIGKILL)
        assert stage.timers.next_s == wait_s
        stage.timers.advance(wait_s)


def test_replace__the_successor_is_ready_before_the_predecessor_goes(stage: Stage) -> None:
    """Two at once for a moment, never none."""
    predecessor = stage.serve()
    reported = stage.replace()
    successor = stage.last
    assert stage.successors == [False, True]  # so the successor knows that it is to listen only when ready
    assert (predecessor.signals, stage.slot.component.is_ready) == ([], True)
    successor.tell(NOT_READY)
    assert predecessor.signals == []
    successor.tell(READY)
    assert (predecessor.signals, reported) == ([signal.SIGTERM], [])
    assert stage.slot.component.is_ready
    predecessor.end(0)
    assert reported == [""]
    assert stage.slot.pids == [successor.pid]
    assert (stage.restarts("rolling"), stage.restarts("exited")) == (1, 0)
    assert stage.timers.waiting == []


def test_replace__a_predecessor_that_does_not_end_is_killed(stage: Stage) -> None:
    """A stuck call holds up a rolling restart for a bounded time, and is no fault of the whole."""
    predecessor = stage.serve()
    reported = stage.replace()
    stage.last.tell(READY)
    stage.timers.advance(END_TIMEOUT_S)
    assert predecessor.signals == [signal.SIGTERM, signal.SIGKILL]
    predecessor.end(-signal.SIGKILL)
    assert reported == [""]
    assert not stage.slot.was_killed


def test_replace__a_successor_that_fails_leaves_the_predecessor_in_place(stage: Stage) -> None:
    """A mistake in the new configuration costs nothing but an error."""
    predecessor = stage.serve()
    reported = stage.replace()
    stage.last.tell(Report(fault=FileFaultsError([FileFault("a.yaml", None, "", "is gone")], 1)))
    stage.last.end(1)
    assert reported == ["worker 3: a.yaml: is gone"]
    assert (predecessor.signals, stage.slot.pids) == ([], [predecessor.pid])
    assert stage.restarts("start_failed") == 1
    assert stage.timers.waiting == []


def test_replace__a_successor_must_be_ready_in_time(stage: Stage) -> None:
    """Serving is not enough: a successor that cannot reach its store must not take over."""
    predecessor = stage.serve()
    reported = stage.replace()
    stage.last.tell(NOT_READY)
    stage.timers.advance(START_TIMEOUT_S)
    assert stage.last.signals == [signal.SIGKILL]
    stage.last.end(-signal.SIGKILL)
    assert reported == ["worker 3 was not ready within 20 s (store: unreachable)"]
    assert (predecessor.signals, stage.slot.component.is_ready) == ([], True)


def test_replace__when_the_system_refuses_the_predecessor_stays(stage: Stage) -> None:
    """No process can be started: reported at once."""
    predecessor = stage.serve()
    stage.refusal = OSError(12, "Cannot allocate memory")
    reported = stage.replace()
    assert len(reported) == 1 and "Cannot allocate memory" in reported[0]
    assert stage.slot.pids == [predecessor.pid]


def test_replace__a_crash_meanwhile_is_made_good_by_the_successor(stage: Stage) -> None:
    """No third process is started for a place whose next worker is on its way."""
    stage.serve()
    reported = stage.replace()
    stage.workers[0].end(CRASH)
    assert (len(stage.workers), len(stage.timers.waiting)) == (2, 1)
    stage.last.tell(READY)
    assert (reported, stage.slot.component.is_ready) == ([""], True)


def test_replace__when_both_fail_the_place_is_filled_as_before(stage: Stage) -> None:
    """The crashed one is started again by what it was started by."""
    stage.serve()
    newer = Stage()
    reported: list[str] = []
    stage.slot.replace(newer.launch, reported.append)
    stage.last.end(CRASH)
    newer.last.end(1)
    assert reported == ["worker 3 ended (exit code 1) before it was ready; see the log lines of this worker"]
    stage.timers.advance(stage.timers.next_s)
    assert (len(stage.workers), len(newer.workers)) == (2, 1)


def test_replace__of_a_place_that_waits_to_restart_fills_it(stage: Stage) -> None:
    """A corrected configuration ends a crash loop at once."""
    stage.serve()
    stage.crash_in_a_row(3)
    assert stage.slot.is_empty
    reported = stage.replace()
    stage.last.tell(READY)
    assert (reported, len(stage.timers.waiting)) == ([""], 0)


def test_replace__what_took_over_is_what_restarts(stage: Stage) -> None:
    """After a rolling restart a crash brings back the new configuration, without old crashes' wait."""
    stage.serve().end(CRASH)
    stage.timers.advance(0)
    stage.last.tell(READY)
    newer = Stage()
    stage.slot.replace(newer.launch, lambda why_not: None)
    newer.last.tell(READY)
    stage.last.end(0)
    newer.last.end(CRASH)
    assert stage.timers.next_s == 0
    stage.timers.advance(0)
    assert (len(stage.workers), len(newer.workers)) == (2, 2)


def test_stop__drains_everything_and_starts_nothing(stage: Stage) -> None:
    """Incumbent and successor are stopped; their ends are not crashes."""
    incumbent = stage.serve()
    reported = stage.replace()
    stage.slot.stop()
    assert (incumbent.signals, stage.last.signals) == ([signal.SIGTERM], [signal.SIGTERM])
    assert stage.slot.component == Component(False, "draining")
    stage.last.end(-signal.SIGTERM)
    incumbent.end(0)
    assert (stage.slot.is_empty, stage.slot.was_killed, reported) == (True, False, [])
    assert stage.timers.waiting == []
    assert sum(stage.restarts(reason) for reason in ("crashed", "exited", "start_failed")) == 0


def test_stop__kills_what_does_not_end_in_time(stage: Stage) -> None:
    """SIGTERM, the drain's time, SIGKILL; and it is known afterwards."""
    worker = stage.serve()
    stage.slot.stop()
    assert stage.slot.end_timeout_s == END_TIMEOUT_S
    stage.timers.advance(END_TIMEOUT_S - 0.001)
    assert worker.signals == [signal.SIGTERM]
    stage.timers.advance(0.001)
    assert worker.signals == [signal.SIGTERM, signal.SIGKILL]
    worker.end(-signal.SIGKILL)
    assert (stage.slot.is_empty, stage.slot.was_killed) == (True, True)


def test_stop__takes_back_a_restart(stage: Stage) -> None:
    """A place that waits to restart stays empty."""
    stage.serve().end(CRASH)
    stage.slot.stop()
    stage.timers.advance(1_000)
    assert (len(stage.workers), stage.slot.is_empty) == (1, True)


def test_stop__again_with_kill_ends_at_once(stage: Stage) -> None:
    """A second signal: no more waiting."""
    worker = stage.serve()
    stage.slot.stop()
    stage.slot.stop()
    stage.slot.kill()
    assert worker.signals == [signal.SIGTERM, signal.SIGKILL]
    assert stage.slot.was_killed


def test_beats__a_standing_loop_is_ended(stage: Stage) -> None:
    """A worker whose loop hangs answers nothing, but would go on getting connections."""
    worker = stage.serve()
    for _ in range(BEATS_MISSED_MAX - 1):
        stage.slot.check_beats()
    worker.beat += 1
    for _ in range(BEATS_MISSED_MAX):
        stage.slot.check_beats()
        assert worker.signals == []
    stage.slot.check_beats()
    assert worker.signals == [signal.SIGKILL]
    worker.end(-signal.SIGKILL)
    assert stage.restarts("unresponsive") == 1
    stage.timers.advance(0)
    assert len(stage.workers) == 2


def test_beats__a_start_has_its_own_bound(stage: Stage) -> None:
    """While a large registry is loaded the loop does not turn yet."""
    stage.slot.start(stage.launch)
    for _ in range(10 * BEATS_MISSED_MAX):
        stage.slot.check_beats()
    assert stage.last.signals == []


def test_changes__are_reported(stage: Stage) -> None:
    """A caller that waits for a slot wakes at each of its events."""
    seen = [stage.changes]
    for move in (
        lambda: stage.slot.start(stage.launch),
        lambda: stage.last.tell(READY),
        lambda: stage.last.end(CRASH),
        lambda: stage.timers.advance(0),
        stage.slot.stop,
        lambda: stage.last.end(-signal.SIGTERM),
    ):
        move()
        seen.append(stage.changes)
    assert seen == sorted(set(seen))


def test_health__names_the_sick_worker(stage: Stage) -> None:
    """By its number: ready, silent since, how late its event loop is, restarts."""
    assert health(stage) == {**HEALTHY, "ready": 0}
    stage.serve()
    assert health(stage) == HEALTHY
    for _ in range(5):
        stage.slot.check_beats()
    stage.last.loop_lag = (4, 6_000_000_000)
    late = {"silent_seconds": 5, "loop_lag_seconds_count": 4, "loop_lag_seconds_sum": 6}
    assert health(stage) == {**HEALTHY, **late}
    assert stage.slot.component.is_ready
    assert "blocked: its event loop stands still for 5 s" in stage.slot.component.state
    stage.last.end(CRASH)
    late["silent_seconds"] = 0
    assert health(stage) == {**HEALTHY, **late, "ready": 0, "slot_restarts_total": 1}
    stage.timers.advance(0)
    stage.last.loop_lag = (2, 1_000_000_000)
    both = {"loop_lag_seconds_count": 6, "loop_lag_seconds_sum": 7}
    assert health(stage) == {**HEALTHY, **both, "ready": 0, "slot_restarts_total": 1}


HEALTHY = {
    "ready": 1,
    "silent_seconds": 0,
    "loop_lag_seconds_count": 0,
    "loop_lag_seconds_sum": 0,
    "slot_restarts_total": 0,
}


def health(stage: Stage) -> dict[str, float]:
    """The metrics of worker 3, by the ends of their names."""
    samples = [sample for family in WorkerHealth([stage.slot]).collect() for sample in family.samples]
    assert {sample.labels["worker"] for sample in samples} == {"3"}
    return {sample.name.removeprefix("sidecar_worker_"): sample.value for sample in samples}

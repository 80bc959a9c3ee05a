"""A suspension is instant: short runs on real sidecars, and the proof finds one that is not."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from loadtest.harness.run import drive
from loadtest.harness.scenario import EventSettings, load_scenario
from loadtest.harness.stage import Stage, staged
from loadtest.harness.suspensions import Suspension

TIMES = 8
SHORT = (
    "load.loop=open",
    "load.rate_per_s=400",
    "load.duration_s=4",
    f"traffic.integrations={TIMES}",
    f'events=[{{at_s=0.3, do="suspend", times={TIMES}, pause_s=0.05}}]',
)


def suspending_under_load(
    sidecars: int, change: Callable[[Stage], None] = lambda stage: None
) -> dict[str, Any]:
    """The result of a short run; *change* changes the stage first."""
    scenario = load_scenario("revocation", (*SHORT, f"sidecar.count={sidecars}"))
    with staged(scenario) as stage:
        change(stage)
        return drive(scenario, stage)


def test_revocation__nobody_is_let_in_after_the_commit() -> None:
    """No sidecar under load admits a request that was sent after the commit was answered."""
    result = suspending_under_load(sidecars=2)
    found = result["verdict"]["suspensions"]
    assert result["verdict"]["faults"] == []
    assert 0 < found["made"] <= TIMES
    assert (found["admitted_after"], found["lacking_replicas"], found["errors"]) == (0, 0, 0)
    assert found["sent_after"] > 0
    assert result["answers"]["valid"]["200"] > 0


def test_revocation__one_that_does_not_work_is_found_out() -> None:
    """An administrator who does nothing: requests that go on being admitted are counted."""

    def idle(stage: Stage) -> None:
        def suspend(event: EventSettings) -> None:
            now_ns = monotonic_ns()
            stage.suspensions.made += [Suspension(number, now_ns, now_ns) for number in event.integrations]

        stage.actions["suspend"] = suspend

    result = suspending_under_load(1, idle)
    assert result["verdict"]["suspensions"]["admitted_after"] > 0
    assert not result["verdict"]["is_right"]

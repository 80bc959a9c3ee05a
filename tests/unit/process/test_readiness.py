"""Whether the workers together get traffic."""

from __future__ import annotations

import pytest

from sidecar.process.readiness import Component, WorkersReadiness, describe_degraded
from tests.unit.process.supervisor.playing import CRASH, NOT_READY, READY, Stage


def readiness_of(*stages: Stage) -> WorkersReadiness:
    """The readiness of the workers of *stages*, numbered from 3 on."""
    return WorkersReadiness(
        stages[0].metrics,
        lambda: {f"worker {number}": stage.slot.component for number, stage in enumerate(stages, 3)},
    )


@pytest.mark.parametrize(
    ("reports", "is_ready", "status"),
    [
        ((READY, READY), True, "ready"),
        ((READY, NOT_READY), True, "degraded"),
        ((NOT_READY, READY), True, "degraded"),
        ((NOT_READY, NOT_READY), False, "not ready"),
    ],
)
def test_readiness__one_ready_worker_is_enough(reports: tuple, is_ready: bool, status: str) -> None:
    """A worker that is not ready gets no traffic anyway; that one is missing shows in the status."""
    stages = [Stage() for _ in reports]
    readiness = readiness_of(*stages)
    assert (readiness.is_ready, readiness.status) == (False, "not ready")
    for stage, report in zip(stages, reports, strict=True):
        stage.slot.start(stage.launch)
        stage.last.tell(report)
    assert (readiness.is_ready, readiness.status) == (is_ready, status)


def test_readiness__names_each_worker_and_what_it_lacks() -> None:
    """Anyone who looks at /readyz sees which worker is missing, and why."""
    stage = Stage()
    readiness = readiness_of(stage)
    assert readiness.components == {"worker 3": Component(False, "starting")}
    stage.serve()
    assert readiness.components == {"worker 3": Component(True, "ready")}
    stage.last.tell(NOT_READY)
    assert readiness.components == {"worker 3": Component(False, "store: unreachable")}
    stage.last.end(CRASH)
    assert readiness.components == {"worker 3": Component(False, "restarts: crashed (SIGSEGV)")}


def test_readiness__ends_with_the_drain() -> None:
    """From the first moment of a stop on, /readyz says no."""
    stage = Stage()
    stage.serve()
    readiness = readiness_of(stage)
    stage.slot.stop()
    assert (readiness.is_ready, readiness.status) == (False, "not ready")


def test_degraded__a_ready_worker_has_no_problem() -> None:
    """Only a state that says more than that all is well is one."""
    components = {"worker 0": Component(True, "ready"), "registry": Component(True, "loaded, not followed")}
    assert describe_degraded(components) == "registry: loaded, not followed"

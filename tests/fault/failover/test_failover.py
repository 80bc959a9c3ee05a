"""A store's primary is killed under load: every request is answered, and all is normal again by itself."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.harness.run import drive
from loadtest.harness.scenario import load_scenario
from loadtest.harness.stage import staged
from loadtest.harness.suspensions import RATE_TOO_LOW

KILL_AND_STALL = (
    '{at_s=2, do="kill-redis"}, {at_s=3, do="start-redis"}, {at_s=12, do="pause-redis"},'
    ' {at_s=15, do="resume-redis"}'
)


def driven(name: str, *changes: str) -> dict[str, Any]:
    """The result of a scenario with a fraction of its load: enough for every moment, and for two cores."""
    scenario = load_scenario(name, changes)
    with staged(scenario) as stage:
        return drive(scenario, stage)


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_failover__under_load(kind: str) -> None:
    """
    Without a primary the policy answers (503), afterwards the buckets do; no request hangs or is lost.

    The successor may have missed the last takes: a bucket then gives them again, at most one burst.
    """
    load = ("load.rate_per_s=150", "load.duration_s=16", "limits.burst=50")
    result = driven(f"failover-{kind}", *load, 'events=[{at_s=2, do="kill-redis"}]')
    assert result["verdict"]["faults"] == []
    assert set(result["answers"]["valid"]) == {"200", "429", "503"}
    failovers = result["failovers"]
    assert failovers["count"] >= 1
    assert failovers["replaced_after_s"][0] > 0
    assert 0 < failovers["normal_after_s"][0] < 14
    assert result["seconds"][-1]["statuses"].get("503", 0) == 0


def test_failover__an_acknowledged_suspension_holds() -> None:
    """
    Behind Sentinels a primary dies, or stands still and lives on beside its successor.

    Of the suspensions acknowledged meanwhile none is lost, and no request sent later is admitted.
    """
    traffic = ("load.rate_per_s=100", "load.duration_s=22", "traffic.integrations=60")
    suspend = '{at_s=0.5, do="suspend", times=60, pause_s=0.3, administrators=2}'
    result = driven("failover-suspend", *traffic, f"events=[{suspend}, {KILL_AND_STALL}]")
    assert [fault for fault in result["verdict"]["faults"] if fault["what"] != RATE_TOO_LOW] == []
    assert result["failovers"]["count"] >= 1
    found = result["verdict"]["suspensions"]
    assert found["sent_after"] > 0
    assert found["admitted_after"] == 0

"""A store's primary is killed under load: every request is answered, and all is normal again by itself."""

from __future__ import annotations

import pytest

from loadtest.failover import suspensions
from loadtest.failover.answers import DRAINING, DRY
from loadtest.failover.scene import fail_over
from loadtest.failover.suspensions import SuspensionRound, fail_over_while_suspending
from tests.store_harness import run

PATIENCE_S = 180.0
SIDECARS = 2
CALLS_PER_S = 400.0
"""A quarter of what `make failover` sends: enough to meet every moment, and for two cores."""
ANSWER_MS_MAX = 5_000.0
"""No figure of speed: beyond it a caller would have been given up as hung."""


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_failover__under_load(kind: str) -> None:
    """
    Without a primary the policy answers (503), afterwards the buckets do; no request hangs or is lost.

    The successor may have missed the last takes: a bucket then gives them again, at most one burst.
    """
    failover = run(fail_over(kind, SIDECARS), PATIENCE_S)
    assert failover.is_kept, failover.as_json()
    assert failover.hung == 0
    assert failover.failovers >= 1
    statuses = {answer.status for answer in failover.during()}
    assert 503 in statuses
    assert statuses <= {200, 429, 503}
    assert failover.slowest_ms() < ANSWER_MS_MAX
    for bucket in (DRAINING, DRY):
        allowed = failover.subjects[bucket].terms.burst * failover.failovers
        assert failover.over_admitted(bucket) <= allowed
    for sidecar in range(SIDECARS):
        assert failover.recovered_ns(sidecar) > failover.killed_ns


def test_failover__an_acknowledged_suspension_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Behind Sentinels a primary dies, or stands still and lives on beside its successor.

    Of the suspensions acknowledged as durable meanwhile none is lost, and no request sent later is admitted.
    """

    monkeypatch.setattr(suspensions, "CALLS_PER_S", CALLS_PER_S)

    async def scenario() -> list[SuspensionRound]:
        return [played async for played in fail_over_while_suspending(("kill", "stall-3.0"))]

    for played in run(scenario(), PATIENCE_S):
        assert played.is_kept, played.as_json()
        assert played.sent_after > 0

"""The soak, for some seconds: a sidecar under half its load holds its memory and its descriptors."""

from __future__ import annotations

from loadtest.soak import BUCKETS, soak
from sidecar.verify.accuracy import Terms
from tests.redis_servers import shared
from tests.store_harness import run

PATIENCE_S = 90.0
SECONDS, PEAK_S = 2.5, 1.0
SMALL = Terms(limit_rpm=60, burst=2, held_at_start=2)


def test_soak__is_flat() -> None:
    """Neither memory nor descriptors rise, every call is answered, and every path was walked."""
    report = run(soak(shared().standalone.url, SECONDS, PEAK_S, SMALL), PATIENCE_S)
    assert report.is_flat, report
    assert report.statuses[200] > BUCKETS
    assert report.statuses[429] > BUCKETS
    assert report.half_per_s < report.peak_per_s

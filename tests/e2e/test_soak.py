"""The soak, for some seconds: a sidecar under half its load holds its memory and its descriptors."""

from __future__ import annotations

from loadtest.soak import BUCKETS, soak
from tests.redis_servers import shared
from tests.store_worlds import run

PATIENCE_S = 90.0
SECONDS, PEAK_S = 3.0, 1.5


def test_soak__is_flat() -> None:
    """Neither memory nor descriptors rise, every call is answered, and every path was walked."""
    report = run(soak(shared().standalone.url, SECONDS, PEAK_S), PATIENCE_S)
    assert report.is_flat, report
    assert report.statuses[200] > BUCKETS
    assert report.statuses[429] > BUCKETS
    assert report.half_per_s < report.peak_per_s

"""Measures how late the event loop runs what is due: the time for which it was busy or blocked."""

from __future__ import annotations

import asyncio
from time import monotonic_ns

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE

LOOP_LAG = "sidecar_event_loop_lag_seconds"
SAMPLE_INTERVAL_S = 0.25


async def measure_loop_lag(metrics: Metrics) -> None:
    """Sample the lag of this process's event loop until cancelled."""
    observe_ns = metrics.histogram(LOOP_LAG).observe_ns
    while True:
        due_ns = monotonic_ns() + int(SAMPLE_INTERVAL_S * 1e9)
        await asyncio.sleep(SAMPLE_INTERVAL_S)
        observe_ns(max(0, monotonic_ns() - due_ns))


def loop_lag_of(values: memoryview) -> tuple[int, int]:
    """How often the lag was sampled in the process that counts in *values*, and the sum in ns."""
    first = TABLE.slot(LOOP_LAG)
    end = first + len(TABLE.buckets_ns(LOOP_LAG)) + 1
    return sum(values[first:end]), values[end]

"""The lag of the event loop: sampled in the process, readable from another one."""

from __future__ import annotations

import asyncio
import threading

from sidecar.process.loop_lag import SAMPLE_INTERVAL_S, loop_lag_of, measure_loop_lag
from tests.building import make_metrics
from tests.waiting import until

BLOCKED_S = 0.3


def test_loop_lag__shows_how_long_the_loop_was_blocked() -> None:
    """A timer that came due while something blocked the loop is late by the rest of that time."""
    metrics = make_metrics()

    async def act() -> None:
        task = asyncio.create_task(measure_loop_lag(metrics))
        await asyncio.sleep(0)  # it waits now
        threading.Event().wait(SAMPLE_INTERVAL_S + BLOCKED_S)
        await until(lambda: loop_lag_of(metrics.values)[0] == 1)
        task.cancel()

    asyncio.run(asyncio.wait_for(act(), 60))
    assert loop_lag_of(metrics.values)[1] >= BLOCKED_S * 1e9

"""The thread beside the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable

import pytest

from sidecar.process.background import JOBS_MAX, BackgroundThread

TIMEOUT_S = 60.0


def run_jobs(*jobs: Callable[[], object]) -> list[object]:
    """The outcome of each job: its result, or its exception."""

    async def outcomes() -> list[object]:
        thread = BackgroundThread("test")
        try:
            futures = [thread.run(job) for job in jobs]
            return list(await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), TIMEOUT_S))
        finally:
            thread.close()

    return asyncio.run(outcomes())


def test_background_thread__does_jobs_in_order_elsewhere() -> None:
    """Jobs run one after the other, and not on the event loop's thread."""
    order: list[int] = []

    def job() -> int:
        order.append(len(order))
        return threading.get_ident()

    first, second = run_jobs(job, job)
    assert (order, first == second) == ([0, 1], True)
    assert first != threading.get_ident()


def test_background_thread__brings_errors_home() -> None:
    """A job's exception is the future's; the thread goes on."""
    failed, done = run_jobs(lambda: 1 // 0, lambda: "done")
    assert isinstance(failed, ZeroDivisionError)
    assert done == "done"


def test_background_thread__an_abandoned_job_hurts_nobody() -> None:
    """A result that nobody waits for any more is dropped."""

    async def scenario() -> str:
        thread, may_end = BackgroundThread("test"), threading.Event()
        abandoned = thread.run(lambda: may_end.wait(TIMEOUT_S))
        abandoned.cancel()
        may_end.set()
        result = await asyncio.wait_for(thread.run(lambda: "next"), TIMEOUT_S)
        thread.close()
        return result

    assert asyncio.run(scenario()) == "next"


def test_background_thread__a_hanging_job_holds_nothing_up() -> None:
    """The queue is bounded, closing does not wait, and the thread does not keep the process."""

    async def scenario() -> bool:
        thread, begun, may_end = BackgroundThread("hanging"), threading.Event(), threading.Event()

        def hang() -> None:
            begun.set()
            may_end.wait(TIMEOUT_S)

        waiting = [thread.run(hang)]
        assert begun.wait(TIMEOUT_S)
        waiting += [thread.run(lambda: None) for _ in range(JOBS_MAX)]
        with pytest.raises(queue.Full):
            thread.run(lambda: None)
        thread.close()
        is_daemon = next(thread for thread in threading.enumerate() if thread.name == "hanging").daemon
        may_end.set()
        await asyncio.wait_for(asyncio.gather(*waiting), TIMEOUT_S)
        await asyncio.wait_for(thread.run(lambda: None), TIMEOUT_S)
        thread.close()
        return is_daemon

    assert asyncio.run(scenario())

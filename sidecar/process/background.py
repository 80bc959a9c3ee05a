"""A background thread for work that would delay decisions on the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

JOBS_MAX = 16


class BackgroundThread:
    """
    Runs jobs one after another in one thread.

    The thread is a daemon, unlike those of `concurrent.futures`: a job that hangs on a dead network disk must
    not keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        """Start the thread with the name *name*."""
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(JOBS_MAX)
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def run(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        """
        Queue *job*; the future gets its result or exception on the running event loop.

        Raises:
            queue.Full: `JOBS_MAX` jobs are waiting.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # None only if Result is

        def work() -> None:
            try:
                outcome = job(), None
            except BaseException as error:
                outcome = None, error  # type: ignore[assignment]
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, *outcome)

        self._jobs.put_nowait(work)
        return future

    def close(self) -> None:
        """End the thread after the queued jobs, without waiting for it."""
        try:
            self._jobs.put_nowait(None)
        except queue.Full:
            return  # a job hangs; the thread ends with the process

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

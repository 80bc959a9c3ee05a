"""One event loop in a background thread, for servers that tests reach from outside; with deadlines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from tests.waiting import PATIENCE_S

Result = TypeVar("Result")


class BackgroundLoop:
    """A uvloop in its own thread; every call into it has a deadline."""

    def __init__(self) -> None:
        """Start the thread; returns once the loop turns."""
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="servers under test", daemon=True)
        self._thread.start()
        self.call(lambda: None)

    def _turn(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, Result], patience_s: float = PATIENCE_S) -> Result:
        """Run *coroutine* in the loop and wait for its result."""
        future = self.start(coroutine)
        try:
            return future.result(patience_s)
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start *coroutine* in the loop and go on."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call *function* in the loop's thread and wait for its result."""

        async def calling() -> Result:
            return function(*arguments)

        return self.run(calling())

    def close(self) -> None:
        """Stop the loop, join the thread and fail when a task was left running."""
        self.run(self._let_tasks_end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()

    @staticmethod
    async def _let_tasks_end() -> None:
        """Tasks of closed servers end within a few turns of the loop."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, pending = await asyncio.wait(others, timeout=PATIENCE_S / 3)
            assert not pending, f"tasks left behind: {pending}"

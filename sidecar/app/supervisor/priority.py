"""
Decisions go first: what serves the admin API takes the processor only where workers leave it.

On Linux a niceness belongs to a thread, and what a thread starts inherits it; nobody without privileges
takes it back. So workers are started from a thread that was there before, at the niceness of the start.

Source: setpriority(2), sched(7).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

NICENESS = 19
"""The highest that there is: next to a busy worker of niceness 0 it is worth 1.5 % of a core."""

Result = TypeVar("Result")


class Priority:
    """The niceness of a supervisor's main thread, and of the processes that it starts."""

    def __init__(self) -> None:
        """As it is."""
        self._starter: ThreadPoolExecutor | None = None

    def give_way(self) -> None:
        """Let this thread, and the threads that it makes from now on, go after the workers."""
        if self._starter is None:
            self._starter = ThreadPoolExecutor(1, "starter")
            self._starter.submit(os.getpid).result()  # the thread begins with the first work, here
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)

    def start(self, start: Callable[[], Result]) -> Result:
        """Have *start* start a process, at the niceness from before `give_way`; return what it returns."""
        return start() if self._starter is None else self._starter.submit(start).result()

    def close(self) -> None:
        """End the thread that starts processes."""
        if self._starter is not None:
            self._starter.shutdown()
            self._starter = None

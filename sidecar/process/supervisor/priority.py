"""
Decisions go first: what serves the admin API takes the processor only where workers leave it.

On Linux a niceness belongs to a thread, and what a thread starts inherits it; nobody without privileges
takes it back. So workers are started from a thread that was there before, at the niceness of the start.

Niceness shares the processor out in the long run. For who is next, Linux since 6.6 (EEVDF) lets whoever has
the processor keep it for a slice, up to some milliseconds; since 6.12 one that asks for shorter slices
comes in between. Before 6.6 waking threads came in between anyway.

Source: setpriority(2), sched(7), sched_setattr(2); Linux, Documentation/scheduler/sched-eevdf.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

NICENESS = 19
"""The highest that there is: next to a busy worker of niceness 0 it is worth 1.5 % of a core."""

SLICE_NS = 100_000
"""The shortest slice that Linux gives (kernel/sched/syscalls.c)."""
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The number of the system call; the C library has no name for it before glibc 2.41."""
SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""size, policy, flags, niceness, priority, runtime, deadline, period."""

Result = TypeVar("Result")


def ask_for_short_slices() -> bool:
    """
    Let this thread, when it wakes, come before others that give way to it, at once.

    False = this system cannot be asked. A kernel that knows no slices takes it as asked and changes nothing.
    """
    number = SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return False
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    asked = SCHED_ATTR.pack(SCHED_ATTR.size, os.SCHED_OTHER, 0, niceness, 0, SLICE_NS, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, asked, 0) == 0)


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

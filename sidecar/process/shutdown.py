"""
How a process ends: exit codes, a failed start, and stop signals.

The first stop signal starts a drain, a later one ends the process at once. Wrappers such as `timeout`,
`dumb-init -g` and shells signal both a process and its group, so signals within a second count as one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from enum import Enum, auto

EXIT_STOPPED = 0
EXIT_FORCED = 1
"""A second signal ended the process, or a worker had to be killed."""
EXIT_FAULT = 1


class StartError(Exception):
    """A start failed, although the configuration is valid: a worker ended or was not ready in time."""


REPEAT_WINDOW_S = 1.0
"""Signals within this time after the first one belong to the same request to stop."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def ignore_stop_signals(loop: asyncio.AbstractEventLoop) -> None:
    """
    Ignore stop signals just before the process exits, in all its threads.

    When *loop* closes, it would restore the default action, and a signal would end the process with the wrong
    exit code.
    """
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


class StopStep(Enum):
    """The action on a stop signal."""

    DRAIN = auto()
    IGNORE = auto()
    FORCE = auto()


class StopSignals:
    """The stop signals that one process has received."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Read the time from *clock*, in monotonic seconds."""
        self._clock = clock
        self._first_s: float | None = None

    def receive(self) -> StopStep:
        """
        Record a signal and return the action.

        >>> times = iter((10.0, 10.001, 10.9, 11.0))
        >>> signals = StopSignals(lambda: next(times))
        >>> [signals.receive().name for _ in range(4)]
        ['DRAIN', 'IGNORE', 'IGNORE', 'FORCE']
        """
        now_s = self._clock()
        if self._first_s is None:
            self._first_s = now_s
            return StopStep.DRAIN
        return StopStep.IGNORE if now_s - self._first_s < REPEAT_WINDOW_S else StopStep.FORCE

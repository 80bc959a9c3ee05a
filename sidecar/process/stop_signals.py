"""
What a stop signal means: the first asks for a drain, a later one ends the process at once.

Wrappers such as `timeout`, `dumb-init -g` and shells signal both a process and its group, so one wish to
stop can arrive as several signals. Those within a second of the first are the same wish.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from enum import Enum, auto

REPEAT_WINDOW_S = 1.0
"""Signals that come this soon after the first one repeat it."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def ignore_stop_signals() -> None:
    """
    Keep stop signals from this process: it is about to exit, with a code of its own.

    Without the event loop's handlers a signal would end the process as if it had not stopped cleanly.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


class StopStep(Enum):
    """What to do about a stop signal."""

    DRAIN = auto()
    IGNORE = auto()
    FORCE = auto()


class StopSignals:
    """The stop signals that one process has received."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """None has come yet; *clock* tells seconds and never steps back."""
        self._clock = clock
        self._first_s: float | None = None

    def receive(self) -> StopStep:
        """
        Take note of a signal and say what to do.

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

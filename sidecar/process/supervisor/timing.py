"""When the supervisor acts on a worker: timers, timeouts, and the wait before a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import random
from typing import Protocol


class Timer(Protocol):
    """A pending timer."""

    def cancel(self) -> None:
        """Cancel the timer, unless it has fired."""


class Timers(Protocol):
    """The part of an event loop that a slot needs."""

    def time(self) -> float:
        """Seconds on a monotonic clock."""

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: object) -> Timer:
        """Call *callback* in *delay* seconds."""


@dataclass(frozen=True, slots=True)
class WorkerTimeouts:
    """
    When a worker is killed: it does not serve (a successor: is not ready) within `start_timeout_s`, or its
    heartbeat did not change for `beats_missed_max` checks in a row.
    """

    start_timeout_s: float = 120.0
    beats_missed_max: int = 30


WORKER_TIMEOUTS = WorkerTimeouts()


@dataclass(frozen=True, slots=True)
class BackoffLimits:
    """
    The wait before a restart: none after the first crash, then doubling from `first_s` to `longest_s`.

    A worker that served for at least `stable_s` resets the count of crashes.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    stable_s: float = 60.0


class RestartBackoff:
    """The back-off of one worker slot."""

    def __init__(self, limits: BackoffLimits = BackoffLimits(), chance: Callable[[], float] = random) -> None:
        """*chance* returns 0 to 1 for jitter, so that workers that crash together restart apart."""
        self._limits = limits
        self._chance = chance
        self._crashes = 0

    def next_s(self, served_s: float) -> float:
        """Count a crash of a worker that served for *served_s*; return how long to wait."""
        limits = self._limits
        if served_s >= limits.stable_s:
            self._crashes = 0
        self._crashes += 1
        if self._crashes == 1:
            return 0.0
        doublings = min(self._crashes - 2, 32)  # longest_s is reached long before
        delay_s = min(limits.longest_s, limits.first_s * float(2**doublings))
        return delay_s * (0.5 + 0.5 * self._chance())

    def reset(self) -> None:
        """Forget the crashes, for a new program or configuration."""
        self._crashes = 0

"""When the supervisor acts on a worker: timers, timeouts, and the wait before a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import random
from typing import Protocol


class Timer(Protocol):
    """A timer that was set."""

    def cancel(self) -> None:
        """Take it back; nothing happens when it has already fired."""


class Timers(Protocol):
    """The part of an event loop that a place needs."""

    def time(self) -> float:
        """Seconds on a clock that never steps back."""

    def call_later(self, delay: float, callback: Callable[..., object], *arguments: object) -> Timer:
        """Call *callback* in *delay* seconds."""


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long a worker may take to serve, as a successor to be ready, and how often in a row it may be
    looked at without a beat since.
    """

    start_timeout_s: float = 120.0
    beats_missed_max: int = 30


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class BackoffLimits:
    """
    The first crash costs no wait; from the second in a row on it doubles, up to a bound.

    A crash is in a row with the one before when the worker served for less than `stable_s`.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    stable_s: float = 60.0


class RestartBackoff:
    """The back-off of one worker's place."""

    def __init__(self, limits: BackoffLimits = BackoffLimits(), chance: Callable[[], float] = random) -> None:
        """Take jitter from *chance*, 0 ... 1: what crashes together shall not start together."""
        self._limits = limits
        self._chance = chance
        self._crashes = 0

    def next_s(self, served_s: float) -> float:
        """How long to wait, now that a worker has crashed which served for *served_s*."""
        limits = self._limits
        if served_s >= limits.stable_s:
            self._crashes = 0
        self._crashes += 1
        if self._crashes == 1:
            return 0.0
        doublings = min(self._crashes - 2, 32)  # the bound is reached long before
        delay_s = min(limits.longest_s, limits.first_s * float(2**doublings))
        return delay_s * (0.5 + 0.5 * self._chance())

    def reset(self) -> None:
        """Forget the crashes: what runs here from now on is new."""
        self._crashes = 0

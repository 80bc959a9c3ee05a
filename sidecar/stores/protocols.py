"""The protocol of bucket stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from sidecar.domain.bucket import BucketSet, Taken
from sidecar.domain.rate_limits.counters import CountersTaken, CounterTake


class StoreFault(Enum):
    """Why a take has no outcome. The caller answers by its policy and does not retry."""

    UNAVAILABLE = "unavailable"  # not connected, or the breaker is open
    TIMEOUT = "timeout"  # no reply within the deadline; the store may still have executed the take
    OVERLOADED = "overloaded"  # the bounded queue is full
    SUPERSEDED = "superseded"  # the integration's record has changed; the new snapshot is in force


TakeDone = Callable[[Taken | StoreFault], None]
"""Called exactly once with the outcome of a take, on the event loop."""


class BucketStore(Protocol):
    """
    Takes tokens from the buckets of one decision, all or none, by the rules of `domain.bucket`.

    `take_now` answers when the store knows the exact outcome; otherwise the caller calls `take_later`.
    Neither blocks the event loop.
    """

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault | None:
        """
        Take *asked* times (0 = peek) if the exact outcome is known without I/O, else change nothing.

        Returns:
            None when the outcome needs a round trip to the shared store.
        """

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """
        Take *asked* times in the next round trip to the shared store; call *done* within *timeout_s*.

        *done* is called exactly once, and not from within this call.
        """


CountersDone = Callable[[CountersTaken | StoreFault], None]
"""Called exactly once with the outcome of a call's takes, on the event loop."""


class CounterStore(Protocol):
    """
    Takes the hits of one call of the rate-limit service, by the rules of `domain.rate_limits.counters`.

    Calls come as with `BucketStore`: at once where that is possible, else with the next trip.
    """

    def take_now(self, domain: str, takes: Sequence[CounterTake]) -> CountersTaken | StoreFault | None:
        """
        Take from the counters of *domain* if the outcome is known without I/O, else change nothing.

        Returns:
            None when the outcome needs a trip to the shared store.
        """

    def take_later(
        self, domain: str, takes: Sequence[CounterTake], timeout_s: float, done: CountersDone
    ) -> None:
        """
        Take in the next trip to the shared store; call *done* within *timeout_s*.

        *done* is called exactly once, never from within this call.
        """

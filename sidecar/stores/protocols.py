"""What a bucket store promises, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from sidecar.domain.bucket import BucketSet, Taken


class StoreFault(Enum):
    """Why a take has no outcome. The caller answers by its policy and never retries."""

    UNAVAILABLE = "unavailable"  # not connected, or the breaker is open
    TIMEOUT = "timeout"  # no reply within the deadline; the take may still have happened
    OVERLOADED = "overloaded"  # the bounded queue is full
    SUPERSEDED = "superseded"  # the integration's record has changed; the new snapshot is in force


TakeDone = Callable[[Taken | StoreFault], None]
"""Called exactly once with the outcome of a take, on the event loop."""


class BucketStore(Protocol):
    """
    Takes tokens from the buckets of one decision, all or none, by the rules of `domain.bucket`.

    A store answers at once from `take_now` when it can do so exactly; otherwise the caller goes on
    with `take_later`. Neither ever blocks the event loop.
    """

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault | None:
        """
        Take *asked* times (0 = peek) if the exact outcome is at hand, else change nothing.

        Returns:
            None when the outcome needs a trip to the shared store.
        """

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """
        Take *asked* times in the next trip to the shared store; call *done* within *timeout_s*.

        *done* is called exactly once, never from within this call.
        """

"""The protocol of bucket stores."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from sidecar.domain.bucket import BucketSet, Taken


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

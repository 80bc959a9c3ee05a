"""
Follows the decision log: asks again and again for decisions that were recorded since the last answer.

The server knows by the numbers of batches what is new, not by times: clocks may be set back, and a sidecar
may write its files later than others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.admin_client.failures import AdminCallError, Failure

if TYPE_CHECKING:
    from sidecar.admin_client.client import Listing

POLL_INTERVAL_S = 2.0
SEEN_MAX = 100_000
"""Ids of decisions that are remembered."""


class News(NamedTuple):
    """
    New decisions, the oldest first.

    `is_cut`: there are more than one call returns. `problem`: why the call failed, '' = it did not fail.
    """

    decisions: list[dict[str, Any]]
    is_cut: bool = False
    problem: str = ""


class Follower:
    """Polls a list of decisions."""

    def __init__(
        self, ask: Callable[[Mapping[str, str]], Listing], wait: Callable[[float], object] = time.sleep
    ) -> None:
        """
        Follow the decisions that *ask* returns: the newest ones, newest first, by the query of its argument.

        *wait* pauses.
        """
        self._ask = ask
        self._wait = wait
        self._seen: dict[str, None] = {}
        self._recorded = ""

    def poll(self) -> News:
        """
        Return the decisions that no earlier call returned; the first call returns the latest ones.

        Raises:
            AdminCallError: the server refuses the call.
        """
        is_first = not self._recorded
        try:
            listing = self._ask({} if is_first else {"recorded_after": self._recorded})
        except AdminCallError as error:
            if error.failure is not Failure.UNAVAILABLE:
                raise
            return News([], problem=error.lines[0])
        new = [item for item in listing.items if item["decision_id"] not in self._seen]
        is_cut = not is_first and listing.next_after is not None and len(new) == len(listing.items)
        for decision in new:
            self._seen[decision["decision_id"]] = None
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        self._recorded = listing.rest["recorded"]
        return News(new[::-1], is_cut)

    def pause(self) -> None:
        """Wait until the next call is due."""
        self._wait(POLL_INTERVAL_S)

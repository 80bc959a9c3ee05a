"""Follows the decision log: asks again and again for decisions that were not seen before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.admin_client.failures import AdminCallError, Failure

if TYPE_CHECKING:
    from sidecar.admin_client.client import Listing

POLL_INTERVAL_S = 2.0
LATE_S = 120.0
"""How much later than others a decision may be written: by a sidecar that writes its files at other times."""
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
        self,
        ask: Callable[[Mapping[str, str]], Listing],
        wait: Callable[[float], object] = time.sleep,
        since: str = "",
    ) -> None:
        """
        Follow the decisions that *ask* returns: the newest ones, newest first, by the query of its argument.

        *wait* pauses. *since* is the earliest time that is asked for, '' = any.
        """
        self._ask = ask
        self._since = since
        self._wait = wait
        self._seen: dict[str, None] = {}
        self._newest = ""

    def poll(self) -> News:
        """
        Return the decisions that no earlier call returned; the first call returns the latest ones.

        Raises:
            AdminCallError: the server refuses the call.
        """
        is_first = not self._newest
        try:
            listing = self._ask({} if is_first else {"since": self._late_since()})
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
        self._newest = max((self._newest, *(decision["time"] for decision in new)))
        return News(new[::-1], is_cut)

    def pause(self) -> None:
        """Wait until the next call is due."""
        self._wait(POLL_INTERVAL_S)

    def _late_since(self) -> str:
        """The time from which decisions may still be new."""
        since = datetime.fromisoformat(self._newest).astimezone(UTC) - timedelta(seconds=LATE_S)
        if self._since:
            since = max(since, datetime.fromisoformat(self._since).astimezone(UTC))
        return since.isoformat()

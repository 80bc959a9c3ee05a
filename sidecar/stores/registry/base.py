"""What registries do alike, whichever store they are in: watchers, and refusals of what asks for too much."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from sidecar.domain.changes import Revision
from sidecar.domain.refusals import Code, RefusedError, refusal
from sidecar.stores.registry.protocol import PAGE_MAX, Changes, RegistryOverloadedError

CALL_TIMEOUT_S = 10.0
WATCHERS_MAX = 1_024


class WatchedRegistry:
    """
    Lets callers of `changes_since` wait: `_wake` ends their waits, `_look` finds what has changed.

    A store that may miss a change looks by itself every `_look_interval_s`.
    """

    _look_interval_s = float("inf")

    def __init__(self) -> None:
        """Nobody waits."""
        self._watchers: set[asyncio.Future[None]] = set()

    async def changes_since(self, revision: Revision, timeout_s: float = 0.0) -> Changes:
        """See `Registry.changes_since`."""
        deadline_s = monotonic() + timeout_s
        while True:
            with self._watching() as changed:  # before the look, so that no change falls in between
                changes = await self._look(revision, timeout_s > 0)
                remaining_s = deadline_s - monotonic()
                if changes.revision != revision or changes.is_reset or remaining_s <= 0:
                    return changes
                await asyncio.wait([changed], timeout=min(remaining_s, self._look_interval_s))

    async def _look(self, revision: Revision, is_waiting: bool) -> Changes:
        """What has changed since *revision*; *is_waiting* = the caller waits for changes to come."""
        raise NotImplementedError

    def _watch(self, is_watched: bool) -> None:
        """Whether anybody waits."""

    @contextmanager
    def _watching(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done at the next change."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise RegistryOverloadedError(
                f"too many calls wait for changes (limit {WATCHERS_MAX}); retry later"
            )
        changed = asyncio.get_running_loop().create_future()
        self._watchers.add(changed)
        self._watch(True)
        try:
            yield changed
        finally:
            self._watchers.discard(changed)
            self._watch(bool(self._watchers))

    def _wake(self) -> None:
        for changed in self._watchers:
            if not changed.done():
                changed.set_result(None)


def require_at_most(count: int, count_max: int, what: str) -> None:
    """
    Check how many members a call has.

    Raises:
        RefusedError: more than *count_max*.
    """
    if count > count_max:
        raise refusal(
            Code.TOO_MANY,
            "",
            f"{count} {what} are more than the {count_max} of one call",
            "send fewer at a time",
        )


def require_limit(limit: int) -> None:
    """
    Check the size of a page.

    Raises:
        InvalidError: it is not 1 ... `PAGE_MAX`.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise refusal(
            Code.INVALID_VALUE,
            "limit",
            f"limit is {limit}; it must be 1 to {PAGE_MAX}",
            "ask for fewer, and follow the cursor",
        )


def bad_cursor() -> RefusedError:
    """The refusal of a cursor that no page gave."""
    return refusal(Code.INVALID_VALUE, "after", "invalid cursor", "start without a cursor, and follow on")

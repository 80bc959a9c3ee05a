"""The parts that all registries share: waiting for changes, stored records, and refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from sidecar.domain.changes import Revision
from sidecar.domain.integrations import Integration
from sidecar.domain.refusals import Code, RefusedError, refusal
from sidecar.stores.registry.protocol import PAGE_MAX, Changes, RegistryOverloadedError

CALL_TIMEOUT_S = 10.0
WATCHERS_MAX = 1_024


class FoundRecord(NamedTuple):
    """A stored record; for a deleted integration its last one."""

    record: Integration
    is_deleted: bool


class WatchedRegistry:
    """
    Lets callers of `changes_since` wait: `_wake` ends their waits, `_read_changes` finds the changes.

    A registry that may miss a change also polls every `_poll_interval_s`.
    """

    _poll_interval_s = float("inf")

    def __init__(self) -> None:
        self._watchers: set[asyncio.Future[None]] = set()

    async def changes_since(self, revision: Revision, timeout_s: float = 0.0) -> Changes:
        """See `Registry.changes_since`."""
        deadline_s = monotonic() + timeout_s
        while True:
            with self._watching() as changed:  # before the read, so that no change is missed in between
                changes = await self._read_changes(revision, timeout_s > 0)
                remaining_s = deadline_s - monotonic()
                if changes.revision != revision or changes.is_reset or remaining_s <= 0:
                    return changes
                await asyncio.wait([changed], timeout=min(remaining_s, self._poll_interval_s))

    async def _read_changes(self, revision: Revision, is_waiting: bool) -> Changes:
        """Return the changes since *revision*; *is_waiting* = the caller waits for further changes."""
        raise NotImplementedError

    def _watch(self, is_watched: bool) -> None:
        """Called with whether any caller waits for changes."""

    @contextmanager
    def _watching(self) -> Iterator[asyncio.Future[None]]:
        """Yield a future that is done at the next change."""
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
    Check the number of members of a call.

    Raises:
        RefusedError: *count* exceeds *count_max*.
    """
    if count > count_max:
        raise refusal(
            Code.TOO_MANY, "", f"{count} {what} in one call; the limit is {count_max}", "send fewer at a time"
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
            "request a smaller page, and follow the cursor",
        )


def bad_cursor() -> RefusedError:
    """The refusal of a cursor that no page returned."""
    return refusal(Code.INVALID_VALUE, "after", "invalid cursor", "start again without a cursor")


def idempotency_mismatch() -> RefusedError:
    """The refusal of an idempotency key that was used for another request."""
    return refusal(
        Code.IDEMPOTENCY_MISMATCH,
        "idempotency_key",
        "this idempotency key was used for a different request",
        "send a fresh key with each new request, and the same one only to repeat it",
    )


def token_id_used(token_id: str) -> RefusedError:
    """The refusal of a new token whose id was issued before."""
    return refusal(
        Code.CREDENTIAL_ID_USED, "token", f"token id {token_id!r} was used before", "generate a new token"
    )

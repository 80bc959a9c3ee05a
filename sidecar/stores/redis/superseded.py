"""
Takes that were refused because the integration's record has changed: they wait until the new one is in force.

So whoever is told SUPERSEDED can decide again at once. Each still gets its answer within its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TypeAlias

from sidecar.stores.protocols import StoreFault, TakeDone
from sidecar.stores.redis.take_call import NEVER_S, Group

WAITING_MAX = 8_192
"""Groups that wait; the takes of further ones are told at once, and the caller goes round or fails closed."""

Refresh: TypeAlias = Callable[[str, int, Callable[[bool], None]], None]
"""Puts an integration's record into force, given its id and generation; calls back once, True = done."""

Notify: TypeAlias = Callable[[Iterable[TakeDone], StoreFault], None]


class SupersededTakes:
    """
    Holds superseded takes of all pipelines while the record that superseded theirs is being put into force.
    """

    __slots__ = ("_due_s", "_loop", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hold nothing."""
        self._loop = loop
        self._waiting: dict[Group, Notify] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = NEVER_S

    def __len__(self) -> int:
        """Groups that wait."""
        return len(self._waiting)

    def hold(self, group: Group, generation: int, notify: Notify, refresh: Refresh | None) -> None:
        """Let the takes of *group* wait for *refresh*, None = for nothing; *notify* tells them."""
        if refresh is None or len(self._waiting) >= WAITING_MAX:
            # No other fault: a policy for a store that is away must not admit by a record known to be old.
            notify(group.release(), StoreFault.SUPERSEDED)
            return
        self._waiting[group] = notify
        refresh(group.compiled.buckets.owner, generation, lambda is_known: self._end(group, is_known))
        if group in self._waiting:
            self._watch(group.deadline_s)

    def close(self) -> None:
        """Nobody waits any longer."""
        for group in tuple(self._waiting):
            self._end(group, is_known=False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._due_s = None, NEVER_S

    def _end(self, group: Group, is_known: bool) -> None:
        """Notify those of *group* who still wait; an old record must not be gone by, so unknown fails."""
        notify = self._waiting.pop(group, None)
        if notify is not None:
            notify(group.release(), StoreFault.SUPERSEDED if is_known else StoreFault.UNAVAILABLE)

    def _watch(self, due_s: float) -> None:
        if due_s >= self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._loop.call_later(max(0.0, due_s - monotonic()), self._expire)

    def _expire(self) -> None:
        """Notify those whose time is over."""
        self._timer, self._due_s = None, NEVER_S
        now_s = monotonic()
        for group, notify in tuple(self._waiting.items()):
            if group.deadline_s <= now_s:
                notify(group.expire(now_s), StoreFault.TIMEOUT)
                group.forget_expired()
            if not group.waiting:
                self._waiting.pop(group, None)
        self._watch(min((group.deadline_s for group in self._waiting), default=NEVER_S))

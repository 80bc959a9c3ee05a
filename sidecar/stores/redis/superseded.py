"""
Takes refused because the integration's record has changed: they wait until the new record is in force.

A caller that gets SUPERSEDED can therefore decide again at once. Every take is still answered in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final, TypeAlias

from sidecar.stores.protocols import StoreFault, TakeDone
from sidecar.stores.redis.take_call import NEVER_S, CompiledSet, Group

WAITING_MAX: Final = 8_192
"""Maximum number of waiting groups; takes of more groups get SUPERSEDED at once."""

Refresh: TypeAlias = Callable[[str, int, Callable[[bool], None]], None]
"""Puts the record with an integration's id and generation into force; calls back once, True = done."""

Notify: TypeAlias = Callable[[Iterable[TakeDone], StoreFault], None]


class SupersededTakes:
    """Holds superseded takes of all pipelines until the new record is in force."""

    __slots__ = ("_due_s", "_loop", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Group[CompiledSet], Notify] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = NEVER_S

    def __len__(self) -> int:
        return len(self._waiting)

    def hold(
        self, group: Group[CompiledSet], generation: int, notify: Notify, refresh: Refresh | None
    ) -> None:
        """Hold the takes of *group* until *refresh* calls back, then call *notify*; None = do not wait."""
        if refresh is None or len(self._waiting) >= WAITING_MAX:
            # Not UNAVAILABLE, which may fail open: that would admit by an outdated record.
            notify(group.release(), StoreFault.SUPERSEDED)
            return
        self._waiting[group] = notify
        refresh(group.compiled.buckets.owner, generation, lambda is_known: self._end(group, is_known))
        if group in self._waiting:
            self._watch(group.deadline_s)

    def close(self) -> None:
        """Answer all waiting takes with UNAVAILABLE."""
        for group in tuple(self._waiting):
            self._end(group, is_known=False)
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._due_s = None, NEVER_S

    def _end(self, group: Group[CompiledSet], is_known: bool) -> None:
        """Answer the waiting takes of *group*; without the new record they fail with UNAVAILABLE."""
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
        """Fail the takes whose deadline has passed."""
        self._timer, self._due_s = None, NEVER_S
        now_s = monotonic()
        for group, notify in tuple(self._waiting.items()):
            if group.deadline_s <= now_s:
                notify(group.expire(now_s), StoreFault.TIMEOUT)
                group.forget_expired()
            if not group.waiting:
                self._waiting.pop(group, None)
        self._watch(min((group.deadline_s for group in self._waiting), default=NEVER_S))

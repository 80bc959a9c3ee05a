"""Batches of takes for one node, and the bounded queue that collects them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sidecar.domain.bucket import ASKED_MAX
from sidecar.stores.redis.count_call import CounterCall
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.take_call import NEVER_S, AnyGroup, CompiledSet, Done, Group


class Batch:
    """
    Groups of equal takes that are sent to a node in one write.

    Before sending only `groups`, `takes`, `keys` and `deadline_s` (the earliest of its takes) are used.
    After that, `unanswered` counts its script calls without a reply, `overdue_s` is when it counts as a
    failure of the node and `dead_s` when its connection is aborted; infinity once that has happened.
    """

    __slots__ = (
        "dead_s", "deadline_s", "groups", "has_counters", "is_overdue", "keys", "overdue_s",
        "sent_s", "takes", "unanswered",
    )  # fmt: skip

    def __init__(self) -> None:
        self.groups: dict[CompiledSet | CounterCall, AnyGroup] = {}
        self.takes = 0
        self.keys = 0
        self.has_counters = False
        self.deadline_s = NEVER_S
        self.sent_s = 0.0
        self.overdue_s = NEVER_S
        self.dead_s = NEVER_S
        self.is_overdue = False
        self.unanswered = 0

    def expire(self, now_s: float) -> list[Done]:
        """Return the callbacks of expired takes, each once."""
        due: list[Done] = []
        deadline_s = NEVER_S
        for group in self.groups.values():
            due += group.expire(now_s)
            deadline_s = min(deadline_s, group.deadline_s)
        self.deadline_s = deadline_s
        return due

    def shrink(self) -> None:
        """Drop the expired takes, so that they are not sent."""
        for group in self.groups.values():
            group.forget_expired()
        self.groups = {key: group for key, group in self.groups.items() if group.waiting}
        self.takes = sum(len(group.waiting) for group in self.groups.values())

    def release(self) -> Iterator[Done]:
        """Remove all takes; yield the callbacks of those that still wait."""
        for group in self.groups.values():
            yield from group.release()


class TakeQueue:
    """
    A bounded queue of batches; new takes join the last batch.

    `takes` counts the queued takes. The owner must check `is_full` before `add`.
    """

    __slots__ = ("_batches", "_groups_max", "_keys_max", "_last", "_takes_max", "takes")

    def __init__(self, limits: StoreLimits) -> None:
        self._groups_max = limits.groups_max
        self._keys_max = limits.keys_max
        self._takes_max = limits.queue_takes_max
        self._last = Batch()
        self._batches: deque[Batch] = deque((self._last,))
        self.takes = 0

    @property
    def is_full(self) -> bool:
        """Whether the next take must be refused."""
        return self.takes >= self._takes_max

    def add(self, compiled: CompiledSet | CounterCall, asked: int, deadline_s: float, done: Done) -> None:
        """Add a take to the last batch, merged with equal takes."""
        batch = self._last
        group = batch.groups.get(compiled)
        if group is None or group.asked + asked > ASKED_MAX:
            batch, group = self._open(compiled, group is not None)
        group.waiting.append((asked, deadline_s, done))
        group.asked += asked
        batch.takes += 1
        self.takes += 1
        if deadline_s < batch.deadline_s:
            batch.deadline_s = deadline_s

    def _open(self, compiled: CompiledSet | CounterCall, is_group_full: bool) -> tuple[Batch, AnyGroup]:
        """Add a group, in a new batch if the last batch has no room."""
        batch = self._last
        keys = len(compiled.keys) + 1
        if batch.groups and (
            is_group_full or len(batch.groups) >= self._groups_max or batch.keys + keys > self._keys_max
        ):
            batch = self._last = Batch()
            self._batches.append(batch)
        group = batch.groups[compiled] = Group(compiled)
        batch.keys += keys
        batch.has_counters |= isinstance(compiled, CounterCall)
        return batch, group

    def pop(self) -> Batch | None:
        """Remove and return the oldest batch; None = the queue is empty."""
        if not self.takes:
            return None
        batch = self._batches.popleft()
        if batch is self._last:
            self._last = Batch()
            self._batches.append(self._last)
        self.takes -= batch.takes
        return batch

    @property
    def deadline_s(self) -> float:
        """The earliest deadline of all queued takes."""
        return min(batch.deadline_s for batch in self._batches)

    def expire(self, now_s: float) -> list[Done]:
        """Remove the expired takes, so that they are not sent; return their callbacks."""
        due: list[Done] = []
        for batch in self._batches:
            if batch.deadline_s <= now_s:
                due += batch.expire(now_s)
                batch.shrink()
        self._batches = deque(batch for batch in self._batches if batch.takes or batch is self._last)
        self.takes = sum(batch.takes for batch in self._batches)
        return due

    def release(self) -> list[Done]:
        """Empty the queue; return the callbacks of its takes."""
        due = [done for batch in self._batches for done in batch.release()]
        self._last = Batch()
        self._batches = deque((self._last,))
        self.takes = 0
        return due

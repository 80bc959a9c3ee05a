"""Takes on their way to one node: the batch that gathers, and the batches that wait behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sidecar.domain.bucket import ASKED_MAX
from sidecar.stores.protocols import TakeDone
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.take_call import NEVER_S, CompiledSet, Group


class Batch:
    """
    Groups of equal takes that go to a node in one write.

    Until it is sent only `groups`, `takes`, `keys` and `deadline_s` (the nearest of its takes) matter.
    After that, `unanswered` counts its script calls without a reply, `overdue_s` is when it counts as
    a failure of the node and `dead_s` when its connection is given up; infinity once that has happened.
    """

    __slots__ = (
        "dead_s",
        "deadline_s",
        "groups",
        "is_overdue",
        "keys",
        "overdue_s",
        "sent_s",
        "takes",
        "unanswered",
    )

    def __init__(self) -> None:
        """Begin empty."""
        self.groups: dict[CompiledSet, Group] = {}
        self.takes = 0
        self.keys = 0
        self.deadline_s = NEVER_S
        self.sent_s = 0.0
        self.overdue_s = NEVER_S
        self.dead_s = NEVER_S
        self.is_overdue = False
        self.unanswered = 0

    def expire(self, now_s: float) -> list[TakeDone]:
        """Whom to tell that their time is over, each once."""
        due: list[TakeDone] = []
        deadline_s = NEVER_S
        for group in self.groups.values():
            due += group.expire(now_s)
            deadline_s = min(deadline_s, group.deadline_s)
        self.deadline_s = deadline_s
        return due

    def shrink(self) -> None:
        """Drop the takes that have expired, so that they are not taken."""
        for group in self.groups.values():
            group.forget_expired()
        self.groups = {key: group for key, group in self.groups.items() if group.waiting}
        self.takes = sum(len(group.waiting) for group in self.groups.values())

    def release(self) -> Iterator[TakeDone]:
        """Whom to tell, each once: the batch is over."""
        for group in self.groups.values():
            yield from group.release()


class TakeQueue:
    """
    A bounded queue of batches; takes join the last one.

    `takes` counts those that wait. Its owner asks `is_full` before it adds.
    """

    __slots__ = ("_batches", "_groups_max", "_keys_max", "_last", "_takes_max", "takes")

    def __init__(self, limits: StoreLimits) -> None:
        """Begin with an empty batch."""
        self._groups_max = limits.groups_max
        self._keys_max = limits.keys_max
        self._takes_max = limits.queue_takes_max
        self._last = Batch()
        self._batches: deque[Batch] = deque((self._last,))
        self.takes = 0

    @property
    def is_full(self) -> bool:
        """Whether one more take must be refused."""
        return self.takes >= self._takes_max

    def add(self, compiled: CompiledSet, asked: int, deadline_s: float, done: TakeDone) -> None:
        """Let a take join the last batch, merged with its equals."""
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

    def _open(self, compiled: CompiledSet, is_group_full: bool) -> tuple[Batch, Group]:
        """A new group, in a new batch where the last one has no room."""
        batch = self._last
        keys = len(compiled.keys) + 1
        if batch.groups and (
            is_group_full or len(batch.groups) >= self._groups_max or batch.keys + keys > self._keys_max
        ):
            batch = self._last = Batch()
            self._batches.append(batch)
        group = batch.groups[compiled] = Group(compiled)
        batch.keys += keys
        return batch, group

    def pop(self) -> Batch | None:
        """The batch that has waited longest; None = nothing waits."""
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
        """The nearest deadline of all takes that wait."""
        return min(batch.deadline_s for batch in self._batches)

    def expire(self, now_s: float) -> list[TakeDone]:
        """Take out the takes whose time is over; whom to tell. They will not be taken."""
        due: list[TakeDone] = []
        for batch in self._batches:
            if batch.deadline_s <= now_s:
                due += batch.expire(now_s)
                batch.shrink()
        self._batches = deque(batch for batch in self._batches if batch.takes or batch is self._last)
        self.takes = sum(batch.takes for batch in self._batches)
        return due

    def release(self) -> list[TakeDone]:
        """Empty the queue; whom to tell."""
        due = [done for batch in self._batches for done in batch.release()]
        self._last = Batch()
        self._batches = deque((self._last,))
        self.takes = 0
        return due

"""
What take.lua is sent and what it answers: packing groups of takes, and giving each take its share.

The script decides how many of the equal takes of a group are admitted; the spec in `domain.bucket`
then apportions them one by one, so that each take gets what it would have got alone in its turn.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

from sidecar.domain.bucket import BucketSet, Level, Taken, draw, draw_all
from sidecar.stores.protocols import TakeDone
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.resp import array_of, bulk
from sidecar.stores.redis.scripts import TAKE

BUCKETS_MAX = 64
"""Buckets of one decision; keeps a call within Lua's stack and Redis responsive."""

GENERATION_MAX = 2**32 - 1
UNCHECKED = 0
NEVER_S = float("inf")

Waiting = tuple[int, float, TakeDone | None]
"""One take: asked, deadline on the monotonic clock, and whom to tell; None = it has been told."""


class CompiledSet:
    """
    A bucket set in the form the script takes: packed keys and the words that never change.

    `generation_key` None = the generation is not checked.
    """

    __slots__ = (
        "buckets",
        "cost",
        "generation",
        "generation_key",
        "generation_text",
        "is_plain",
        "keys",
        "partition",
    )

    def __init__(self, buckets: BucketSet, keys: KeySpace, checks_generation: bool) -> None:
        """
        Pack the keys of *buckets*.

        Raises:
            ValueError: more than 64 buckets, or a generation that does not fit a word of the script.
        """
        if len(buckets.keys) > BUCKETS_MAX:
            raise ValueError(
                f"{buckets.owner!r} takes from {len(buckets.keys)} buckets at once; at most {BUCKETS_MAX}"
            )
        if checks_generation and not 1 <= buckets.generation <= GENERATION_MAX:
            raise ValueError(
                f"generation of {buckets.owner!r} must be 1..{GENERATION_MAX}, not {buckets.generation}"
            )
        self.buckets = buckets
        self.cost = buckets.cost
        self.generation = buckets.generation if checks_generation else UNCHECKED
        self.partition = keys.partition_of(buckets.owner)
        self.is_plain = len(buckets.keys) == 1 and buckets.cost == 1
        self.keys = tuple(
            (bulk(keys.bucket(buckets.owner, key).encode()), quota.interval_us, quota.burst)
            for key, quota in zip(buckets.keys, buckets.quotas, strict=True)
        )
        self.generation_text = keys.generation(buckets.owner) if checks_generation else ""
        self.generation_key = bulk(self.generation_text.encode()) if checks_generation else None


class Group:
    """Equal takes that meet in one batch: one entry of the script call, many decisions."""

    __slots__ = ("asked", "compiled", "waiting")

    def __init__(self, compiled: CompiledSet) -> None:
        """Begin without a take."""
        self.compiled = compiled
        self.asked = 0
        self.waiting: list[Waiting] = []

    def expire(self, now_s: float) -> list[TakeDone]:
        """
        Take out whom to tell that their time is over. They stay counted in `asked`: it may be too late.
        """
        due = []
        for index, (asked, deadline_s, done) in enumerate(self.waiting):
            if deadline_s <= now_s and done is not None:
                due.append(done)
                self.waiting[index] = (asked, NEVER_S, None)
        return due

    def forget_expired(self) -> None:
        """Drop the takes that have been told, so that they are not taken: only before it is sent."""
        self.waiting = [waiting for waiting in self.waiting if waiting[2] is not None]
        self.asked = sum(asked for asked, _, _ in self.waiting)

    @property
    def deadline_s(self) -> float:
        """The nearest deadline of a take that still waits."""
        return min((deadline_s for _, deadline_s, _ in self.waiting), default=NEVER_S)

    def release(self) -> Iterator[TakeDone]:
        """Whom to tell, each once: the group is over."""
        waiting, self.waiting = self.waiting, []
        return (done for _, _, done in waiting if done is not None)


def encode_call(groups: Iterable[Group], now_us: int = 0, *, is_unchecked: bool = False) -> bytes:
    """
    The EVALSHA that takes for *groups*, all of one partition when the server is a Cluster.

    *now_us* 0 = the server's clock; anything else is for tests. *is_unchecked*: whatever their generations.
    """
    key_at: dict[bytes, int] = {}
    words: list[int] = []
    number = key_at.setdefault
    for group in groups:
        compiled = group.compiled
        key = None if is_unchecked else compiled.generation_key
        generation_at = UNCHECKED if key is None else number(key, len(key_at) + 1)
        words += (group.asked, compiled.cost, generation_at, compiled.generation, len(compiled.keys))
        for key, interval_us, burst in compiled.keys:
            words += (number(key, len(key_at) + 1), interval_us, burst)
    packed = array("I", words)
    if sys.byteorder == "big":
        packed.byteswap()
    return b"".join(
        (
            array_of(len(key_at) + 5),
            _EVALSHA,
            bulk(b"%d" % len(key_at)),
            *key_at,
            bulk(b"%d" % now_us) if now_us else _SERVER_TIME,
            bulk(packed.tobytes()),
        )
    )


_EVALSHA = bulk(b"EVALSHA") + bulk(TAKE.sha)
_SERVER_TIME = bulk(b"0")


class UnexpectedReplyError(ValueError):
    """A reply that take.lua does not give: another server, another script."""


def starts_of(groups: Sequence[Group], reply: object) -> Iterator[tuple[Group, int, list[int]]]:
    """
    Read *reply*: for each group what was admitted, and the TAT from which each bucket's takes counted.

    A negative number is -1 - generation: the owner's record has another one; -1 = there is no record.

    Raises:
        UnexpectedReplyError: it has not the shape that take.lua gives; before anything is yielded.
    """
    if not isinstance(reply, list) or set(map(type, reply)) != {int}:
        raise UnexpectedReplyError(f"take.lua replied {str(reply)[:80]!r}, not a list of integers")
    found: list[tuple[Group, int, list[int]]] = []
    at = 1
    for group in groups:
        if at >= len(reply):
            break
        admitted = reply[at]
        end = at + 1 + (len(group.compiled.keys) if admitted >= 0 else 0)
        found.append((group, admitted, reply[at + 1 : end]))
        at = end
    if len(found) != len(groups) or at != len(reply):
        raise UnexpectedReplyError(f"take.lua replied {len(reply)} integers for {len(groups)} groups")
    return iter(found)


def apportion(
    group: Group, starts: Sequence[int], now_us: int, on_error: Callable[[Exception], None]
) -> Taken:
    """
    Give each take of *group* its outcome, in the order they came, and return the last one's.

    *starts* are the TATs from which the group's takes counted. A take whose time was over is counted
    like the others, for the script has counted it, but nobody is told. What a `done` raises goes to
    *on_error*: it must not cost the others their answer.
    """
    if group.compiled.is_plain:
        return _apportion_plain(group, starts[0], now_us, on_error)
    buckets = group.compiled.buckets
    levels = [Level(start, quota.interval_us) for start, quota in zip(starts, buckets.quotas, strict=True)]
    taken: Taken | None = None
    is_refused = False
    waiting, group.waiting = group.waiting, []
    for asked, _, done in waiting:
        # A refused take changes nothing: every take after it gets the same answer.
        if taken is None or not is_refused:
            taken, drawn = draw_all(levels, buckets.quotas, asked, buckets.cost, now_us)
            levels = levels if drawn is None else drawn
            is_refused = asked > 0 and not taken.admitted
        if done is not None:
            _notify(done, taken, on_error)
    assert taken is not None
    return taken


def _apportion_plain(group: Group, start: int, now_us: int, on_error: Callable[[Exception], None]) -> Taken:
    """The same for one bucket and a cost of 1: the hot path."""
    quota = group.compiled.buckets.quotas[0]
    interval_us = quota.interval_us
    reset_at_us = start
    room = (now_us + quota.span_us - start) // interval_us
    taken: Taken | None = None
    is_refused = False
    waiting, group.waiting = group.waiting, []
    for asked, _, done in waiting:
        if asked == 1 and room > 1:
            # The usual take, admitted while more is left: what `draw` would say, at a third of its cost.
            room -= 1
            reset_at_us += interval_us
            taken = Taken(1, room, 0, reset_at_us)
        elif taken is None or not is_refused:
            taken, drawn = draw(Level(reset_at_us, interval_us), quota, asked, now_us)
            reset_at_us, room = taken.reset_at_us, taken.remaining
            is_refused = drawn is None and asked > 0
        if done is not None:
            try:
                done(taken)
            except Exception as error:
                on_error(error)
    assert taken is not None
    return taken


def _notify(done: TakeDone, taken: Taken, on_error: Callable[[Exception], None]) -> None:
    try:
        done(taken)
    except Exception as error:
        on_error(error)

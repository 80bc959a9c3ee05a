"""
Encoding calls of take.lua, parsing its replies, and dividing each group's result among its takes.

The script decides how many of the equal takes of a group are admitted; the spec in `domain.bucket`
then answers them one by one, so that each take gets the answer that it would have got alone.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from sidecar.domain.bucket import BucketSet, Level, Taken, draw, draw_all
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.resp import array_of, bulk
from sidecar.stores.redis.scripts import TAKE

BUCKETS_MAX: Final = 64
"""Maximum number of buckets of one decision; keeps a call within Lua's stack and Redis responsive."""

GENERATION_MAX: Final = 2**32 - 1
UNCHECKED: Final = 0
NEVER_S: Final = float("inf")

Done = Callable[[Any], None]
"""Called with the outcome: `TakeDone`, or for counters `CountersDone`."""

Waiting = tuple[int, float, Done | None]
"""One take: asked, deadline on the monotonic clock, and callback; None = the callback was called."""


class CompiledSet:
    """
    A bucket set in the encoding of the script: packed keys and the words that never change.

    `generation_key` None = the generation is not checked.
    """

    __slots__ = (
        "buckets", "cost", "generation", "generation_key", "generation_text", "is_plain", "keys",
        "partition",
    )  # fmt: skip

    def __init__(self, buckets: BucketSet, keys: KeySpace, checks_generation: bool) -> None:
        """
        Pack the keys of *buckets*.

        Raises:
            ValueError: there are more than `BUCKETS_MAX` buckets, or the generation exceeds 32 bits.
        """
        if len(buckets.keys) > BUCKETS_MAX:
            raise ValueError(
                f"{buckets.owner!r} takes from {len(buckets.keys)} buckets; the limit is {BUCKETS_MAX}"
            )
        if checks_generation and not 1 <= buckets.generation <= GENERATION_MAX:
            raise ValueError(
                f"generation of {buckets.owner!r} is {buckets.generation}; it must be 1 to {GENERATION_MAX}"
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


Compiled = TypeVar("Compiled")


class Group(Generic[Compiled]):
    """Equal takes in one batch: one entry of the script call for many decisions."""

    __slots__ = ("asked", "compiled", "waiting")

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.asked = 0
        self.waiting: list[Waiting] = []

    def expire(self, now_s: float) -> list[Done]:
        """
        Return the callbacks of expired takes. The takes stay counted in `asked`: they may have been sent.
        """
        due = []
        for index, (asked, deadline_s, done) in enumerate(self.waiting):
            if deadline_s <= now_s and done is not None:
                due.append(done)
                self.waiting[index] = (asked, NEVER_S, None)
        return due

    def forget_expired(self) -> None:
        """Drop the expired takes, so that they are not sent; only before the group is sent."""
        self.waiting = [waiting for waiting in self.waiting if waiting[2] is not None]
        self.asked = sum(asked for asked, _, _ in self.waiting)

    @property
    def deadline_s(self) -> float:
        """The earliest deadline of the waiting takes."""
        return min((deadline_s for _, deadline_s, _ in self.waiting), default=NEVER_S)

    def release(self) -> Iterator[Done]:
        """Remove all takes; return the callbacks of those that still wait."""
        waiting, self.waiting = self.waiting, []
        return (done for _, _, done in waiting if done is not None)


AnyGroup: TypeAlias = Group[Any]
"""Takes from buckets, or a call that counts hits; those of one script call are all of one kind."""


def encode_call(
    groups: Iterable[Group[CompiledSet]], now_us: int = 0, *, is_unchecked: bool = False
) -> bytes:
    """
    Encode the EVALSHA for *groups*, which share a partition when the server is a Cluster.

    *now_us* 0 = the server's clock; other values are for tests. *is_unchecked*: do not check generations.
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


_EVALSHA: Final = bulk(b"EVALSHA") + bulk(TAKE.sha)
_SERVER_TIME: Final = bulk(b"0")


class UnexpectedReplyError(ValueError):
    """The reply does not have the format of take.lua."""


def starts_of(
    groups: Sequence[Group[CompiledSet]], reply: object
) -> Iterator[tuple[Group[CompiledSet], int, list[int]]]:
    """
    Parse *reply*: for each group the number admitted, and the TAT of each bucket before its takes.

    A negative number is -1 - the generation of the owner's record, which has changed; -1 = no record.

    Raises:
        UnexpectedReplyError: the reply is malformed; raised before the first item.
    """
    if not isinstance(reply, list) or set(map(type, reply)) != {int}:
        raise UnexpectedReplyError(
            f"take.lua returned {str(reply)[:80]!r}; it must return a list of integers"
        )
    found: list[tuple[Group[CompiledSet], int, list[int]]] = []
    at = 1
    for group in groups:
        if at >= len(reply):
            break
        admitted = reply[at]
        end = at + 1 + (len(group.compiled.keys) if admitted >= 0 else 0)
        found.append((group, admitted, reply[at + 1 : end]))
        at = end
    if len(found) != len(groups) or at != len(reply):
        raise UnexpectedReplyError(
            f"take.lua returned {len(reply)} integers, which do not fit {len(groups)} groups"
        )
    return iter(found)


def apportion(
    group: Group[CompiledSet], starts: Sequence[int], now_us: int, on_error: Callable[[Exception], None]
) -> Taken:
    """
    Call each take of *group* with its outcome, in order of arrival, and return the last outcome.

    *starts* are the TATs of the buckets before the group's takes. Expired takes are counted, because the
    script has counted them. If a `done` raises, the exception goes to *on_error* and the other takes still
    get their answers.
    """
    if group.compiled.is_plain:
        return _apportion_plain(group, starts[0], now_us, on_error)
    buckets = group.compiled.buckets
    levels = [Level(start, quota.interval_us) for start, quota in zip(starts, buckets.quotas, strict=True)]
    taken: Taken | None = None
    is_refused = False
    waiting, group.waiting = group.waiting, []
    for asked, _, done in waiting:
        # A refused take changes nothing, so later takes get the same answer.
        if taken is None or not is_refused:
            taken, drawn = draw_all(levels, buckets.quotas, asked, buckets.cost, now_us)
            levels = levels if drawn is None else drawn
            is_refused = asked > 0 and not taken.admitted
        if done is not None:
            _notify(done, taken, on_error)
    assert taken is not None
    return taken


def _apportion_plain(
    group: Group[CompiledSet], start: int, now_us: int, on_error: Callable[[Exception], None]
) -> Taken:
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
            # The usual case, admitted with tokens left: the result of `draw` at a third of its cost.
            room -= 1
            reset_at_us += interval_us
            taken = Taken(1, room, 0, reset_at_us, now_us)
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


def _notify(done: Done, taken: Taken, on_error: Callable[[Exception], None]) -> None:
    try:
        done(taken)
    except Exception as error:
        on_error(error)

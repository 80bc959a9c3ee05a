"""What count.lua is sent and what it answers: packing the calls of the rate-limit service."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Final

from sidecar.domain.rate_limits.counters import Counted, CountersTaken, CounterTake
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.resp import array_of, bulk
from sidecar.stores.redis.scripts import COUNT
from sidecar.stores.redis.take_call import AnyGroup, Group, UnexpectedReplyError

BUCKET, QUOTA, SHADOW, COUNTS_REFUSED = 1, 2, 4, 8
FIGURES: Final = 3
"""Integers of the reply for each take."""

_EVALSHA: Final = bulk(b"EVALSHA") + bulk(COUNT.sha)
_SERVER_TIME: Final = bulk(b"0")


class CounterCall:
    """
    The takes of one call, in the form that the script takes: what `CompiledSet` is to buckets.

    No two calls are merged: each has its own group.
    """

    __slots__ = ("keys", "partition", "takes")

    generation_text = ""

    def __init__(self, domain: str, takes: Sequence[CounterTake], keys: KeySpace) -> None:
        """Pack the keys of *takes*; all counters of *domain* are in one partition."""
        self.partition = keys.partition_of(domain)
        self.takes = takes
        self.keys = [bulk(keys.counter(domain, take.key).encode(errors="replace")) for take in takes]


def counts_hits(group: AnyGroup) -> bool:
    """Whether *group* is a call of the rate-limit service."""
    return isinstance(group.compiled, CounterCall)


def encode_counts(groups: Sequence[Group[CounterCall]], now_us: int = 0) -> bytes:
    """
    The EVALSHA that takes for *groups*, all of one partition when the server is a Cluster.

    *now_us* 0 = the server's clock; anything else is for tests.
    """
    key_at: dict[bytes, int] = {}
    words: list[int] = []
    number = key_at.setdefault
    for group in groups:
        compiled = group.compiled
        words.append(len(compiled.takes))
        for key, take in zip(compiled.keys, compiled.takes, strict=True):
            words += (number(key, len(key_at) + 1), take.unit_s, take.limit, take.hits, _flags(take))
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


def _flags(take: CounterTake) -> int:
    return (
        BUCKET * take.is_bucket
        + QUOTA * take.is_quota
        + SHADOW * take.is_shadow
        + COUNTS_REFUSED * take.counts_refused
    )


def settle_counts(
    groups: Sequence[Group[CounterCall]], reply: object, on_error: Callable[[Exception], None]
) -> None:
    """
    Give each call of *groups* its outcome.

    What a `done` raises goes to *on_error*: it must not cost the others their answer.

    Raises:
        UnexpectedReplyError: *reply* is not what count.lua returns; no callback was called.
    """
    if not isinstance(reply, list) or set(map(type, reply)) != {int}:
        raise UnexpectedReplyError(f"count.lua replied {str(reply)[:80]!r}, not a list of integers")
    takes = sum(len(group.compiled.keys) for group in groups)
    if len(reply) != 1 + FIGURES * takes:
        raise UnexpectedReplyError(f"count.lua replied {len(reply)} integers for {takes} takes")
    at = 1
    for group in groups:
        end = at + FIGURES * len(group.compiled.keys)
        counted = [
            Counted(reply[place] == 1, reply[place + 1], reply[place + 2])
            for place in range(at, end, FIGURES)
        ]
        at = end
        taken = CountersTaken(reply[0], counted)
        for done in group.release():
            try:
                done(taken)
            except Exception as error:
                on_error(error)

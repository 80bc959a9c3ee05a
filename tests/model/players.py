"""
The players of the bucket model: the spec on a dict, the embedded store, real Redis, exact fractions.

Each is given the same script calls: groups of equal takes at one time. Redis runs our Lua with its
clock overridden; its keys' TTLs run on the real clock, so each key is made permanent in the very
transaction that wrote it, and the model itself decides when a key's time is over.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import hiredis

from sidecar.domain.bucket import BucketSet, Level, Taken, draw_all
from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.resp import pack
from sidecar.stores.redis.scripts import TAKE
from sidecar.stores.redis.take_call import CompiledSet, Group, apportion, encode_call, starts_of
from tests.exact_bucket import Admissions, ExactBucket

Outcome = Taken | StoreFault
Takes = tuple[BucketSet, list[int]]
"""Equal takes that met in a batch: what they take from, and how much each asks."""


class SpecPlayer:
    """`draw_all` on a dict, one take after another."""

    def __init__(self) -> None:
        """All buckets are full, no owner has a record."""
        self.levels: dict[str, Level] = {}
        self.generations: dict[str, int] = {}

    def play(self, call: Sequence[Takes], now_us: int) -> list[list[Outcome]]:
        """The outcome of each take."""
        return [[self._take(buckets, asked, now_us) for asked in takes] for buckets, takes in call]

    def _take(self, buckets: BucketSet, asked: int, now_us: int) -> Outcome:
        if self.generations.get(buckets.owner) != buckets.generation:
            return StoreFault.SUPERSEDED
        levels = [self.levels.get(key) for key in buckets.keys]
        taken, drawn = draw_all(levels, buckets.quotas, asked, buckets.cost, now_us)
        if drawn is not None:
            self.levels.update(zip(buckets.keys, drawn, strict=True))
        return taken


class EmbeddedPlayer:
    """The embedded store on the model's clock. It knows no generations: its snapshot is always in force."""

    def __init__(self) -> None:
        """All buckets are full."""
        self.now_us = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.store = EmbeddedBucketStore(lambda: self.now_us)

    def take(self, buckets: BucketSet, asked: int, now_us: int) -> Outcome | None:
        """The outcome of one take."""
        self.now_us = now_us
        return self.store.take_now(buckets, asked)


@dataclass
class Written:
    """
    What Redis holds of a bucket: the value as text, its TTL, and when it was written.

    The TTL was read up to `read_after_ms` after it was set: Redis may have to wait for a core in between.
    """

    value: bytes
    ttl_ms: int
    at_us: int
    read_after_ms: int


class RedisPlayer:
    """Real Redis running take.lua, through the store's own packing, reading and apportioning."""

    def __init__(self, port: int, prefix: str) -> None:
        """Talk to the server on *port*, under *prefix*."""
        self.keys = KeySpace(prefix)
        self.written: dict[str, Written] = {}
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._reader = hiredis.Reader(replyError=ErrorReply)
        self._compiled: dict[BucketSet, CompiledSet] = {}

    def close(self) -> None:
        """Hang up, with no key left behind."""
        self.flush()
        self._socket.close()

    def play(self, call: Sequence[Takes], now_us: int) -> list[list[Outcome]]:
        """The outcome of each take; the script is loaded when the server has lost it."""
        groups, outcomes = [], []
        for buckets, takes in call:
            group = Group(CompiledSet(buckets, self.keys, checks_generation=True))
            reported: list[Outcome] = []
            group.waiting = [(asked, 0.0, reported.append) for asked in takes]
            group.asked = sum(takes)
            groups.append(group)
            outcomes.append(reported)
        reply = self._run(groups, now_us)
        if isinstance(reply, ErrorReply) and reply.code == "NOSCRIPT":
            self._ask(TAKE.load)
            reply = self._run(groups, now_us)
        for group, admitted, starts in starts_of(groups, reply):
            if admitted < 0:
                for _, _, done in group.waiting:
                    assert done is not None
                    done(StoreFault.SUPERSEDED)
            else:
                apportion(group, starts, reply[0], _raise)
        return outcomes

    def _run(self, groups: Sequence[Group], now_us: int) -> Any:
        names = sorted(
            {(key, group.compiled.buckets.owner) for group in groups for key in group.compiled.buckets.keys}
        )
        stored = [self.keys.bucket(owner, key) for key, owner in names]
        looks = b"".join(pack("PTTL", key) + pack("PERSIST", key) + pack("GET", key) for key in stored)
        time = pack("TIME")
        commands = pack("MULTI") + time + encode_call(groups, now_us) + looks + time + pack("EXEC")
        began, reply, *looked, ended = self._ask(commands, 5 + 3 * len(stored))[-1]
        read_after_ms = 1 + (_time_us(ended) - _time_us(began)) // 1_000
        for (key, _), ttl_ms, value in zip(names, looked[::3], looked[2::3], strict=True):
            if ttl_ms != -1 and value is not None:  # written just now: before it was permanent
                self.written[key] = Written(value, ttl_ms, now_us, read_after_ms)
        return reply

    def set_generation(self, owner: str, generation: int) -> None:
        """What the registry does when a record changes."""
        self._ask(pack("SET", self.keys.generation(owner), generation))

    def remove(self, owner: str, key: str) -> None:
        """What Redis does when a key's time is over."""
        self._ask(pack("DEL", self.keys.bucket(owner, key)))
        del self.written[key]

    def lose_scripts(self) -> None:
        """SCRIPT FLUSH."""
        self._ask(pack("SCRIPT", "FLUSH"))

    def flush(self) -> None:
        """Remove every key of ours."""
        found = self._ask(pack("KEYS", f"{self.keys.prefix}*"))[0]
        if found:
            self._ask(pack("DEL", *found))
        self.written.clear()

    def _ask(self, commands: bytes, replies: int = 1) -> list[Any]:
        self._socket.sendall(commands)
        found: list[Any] = []
        while len(found) < replies:
            reply = self._reader.gets()
            if reply is not False:
                found.append(reply)
            else:
                self._reader.feed(self._socket.recv(65_536))
        return found


def _time_us(reply: list[bytes]) -> int:
    seconds, microseconds = reply
    return int(seconds) * 1_000_000 + int(microseconds)


def _raise(error: Exception) -> None:
    raise error


class OraclePlayer:
    """
    An exact bucket for each key on real time, reported what the others admitted: they may not admit more.

    As long as a bucket's quota does not change and no clock steps back, it is plain: they admit as much.
    """

    def __init__(self) -> None:
        """All buckets are full."""
        self.exact: dict[str, ExactBucket] = {}
        self._admissions: dict[str, Admissions] = {}
        self._is_plain: dict[str, bool] = {}

    def end(self) -> None:
        """What was admitted holds the bound, whatever the quotas were; all buckets are full again."""
        for admissions in self._admissions.values():
            admissions.check()
        for kept in (self.exact, self._admissions, self._is_plain):
            kept.clear()

    def check(self, buckets: BucketSet, asked: int, taken: Taken, real_us: int) -> None:
        """Never more admitted than the fractions allow; exactly as much in a plain history."""
        exact = []
        for key, quota in zip(buckets.keys, buckets.quotas, strict=True):
            rate = Fraction(1, quota.interval_us)
            bucket = self.exact.setdefault(key, ExactBucket(rate, quota.burst, real_us))
            bucket.at(real_us)
            if (rate, quota.burst) != (bucket.tokens_per_us, bucket.burst):
                bucket.change(rate, quota.burst, rounds_up=False)
                self._is_plain[key] = False
            exact.append(bucket)
            admissions = self._admissions.setdefault(key, Admissions())
            admissions.add(real_us, taken.admitted * buckets.cost, rate, quota.burst)
        allowed = min(bucket.at(real_us) for bucket in exact) // buckets.cost
        assert taken.admitted <= min(asked, allowed)
        if all(self._is_plain.get(key, True) for key in buckets.keys):
            assert taken.admitted == min(asked, allowed)
        for bucket in exact:
            bucket.take(taken.admitted * buckets.cost)

    def clock_stepped_back(self) -> None:
        """From now on the others may be stricter."""
        self._is_plain = dict.fromkeys(self.exact, False)

"""What a registry in Redis holds, key by key; and copies of one, so that each trial starts from the same."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import redis

from sidecar.domain.refusals import RefusedError
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.redis.nodes import LIMITS
from sidecar.stores.registry.redis.registry import RedisRegistry
from sidecar.stores.registry.verification import verify_registry
from tests.administration import LIFECYCLE
from tests.building import ManualClock
from tests.fault.registry.writes import Write
from tests.redis_servers import LOOPBACK, shared

PARTITIONS = 3
Content: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What is kept, by partition (its tag) and key."""

UNDECIDED = ("c:", "promises", "promises-age", "epoch", "layout", "registry-id", "remembered", "settled")
"""
Keys that may be ahead of a change that came to nothing, and do no harm: claims of credential ids, places
of idempotency keys, how far a partition knows of the administrators, and which registry it is.
"""


class Place:
    """One registry in the shared server, under a separate prefix."""

    def __init__(self, server: redis.Redis, prefix: str, partitions: int) -> None:
        """Keys of *server* that begin with *prefix*."""
        self._server = server
        self.prefix = prefix
        self._partitions = partitions

    def url(self, port: int) -> StoreUrl:
        """Where it is, by way of *port*."""
        return parse_store_url(self.url_text(port))

    def url_text(self, port: int) -> str:
        """The same, as text."""
        return f"redis://{LOOPBACK}:{port}?prefix={self.prefix}&partitions={self._partitions}"

    def keys(self) -> list[bytes]:
        """All its keys."""
        return sorted(self._server.scan_iter(match=f"{self.prefix}*", count=1_000))

    def copy_to(self, other: Place) -> Place:
        """Make *other* equal to this one."""
        with self._server.pipeline(transaction=False) as calls:
            for key in self.keys():
                calls.copy(key.decode(), other.prefix + key.decode()[len(self.prefix) :])
            calls.execute()
        return other

    def clear(self) -> None:
        """Remove everything."""
        if keys := self.keys():
            self._server.delete(*keys)

    def content(self) -> Content:
        """Everything that a change writes."""
        keys = [key for key in self.keys() if not _is_undecided(self._name_of(key)[1])]
        with self._server.pipeline(transaction=False) as calls:
            for key in keys:
                calls.type(key)
            kinds = calls.execute()
            for key, kind in zip(keys, kinds, strict=True):
                _READ[kind](calls, key)
            values = calls.execute()
        kept: dict[str, dict[str, Any]] = {}
        for key, value in zip(keys, values, strict=True):
            tag, name = self._name_of(key)
            kept.setdefault(tag, {})[name] = value
        return kept

    def _name_of(self, key: bytes) -> tuple[str, str]:
        tag, _, name = key.decode().removeprefix(self.prefix).partition("}")
        return tag, name


_READ: Mapping[bytes, Callable[[Any, bytes], object]] = {
    b"hash": lambda calls, key: calls.hgetall(key),
    b"zset": lambda calls, key: calls.zrange(key, 0, -1, withscores=True),
    b"stream": lambda calls, key: calls.xrange(key),
    b"string": lambda calls, key: calls.get(key),
}


def _is_undecided(name: str) -> bool:
    return name.startswith(UNDECIDED)


class Shelf:
    """Places in the shared server; all are cleared at the end."""

    def __init__(self) -> None:
        """Connect to the shared server."""
        self.port = shared().standalone.port
        self.server = redis.Redis(LOOPBACK, self.port)
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._places: list[Place] = []

    def place(self, name: str) -> Place:
        """A fresh one, for the write *name*."""
        # Partitions are written side by side, so in several the times on record are not the same each time.
        partitions = 1 if name == "apply_many" else PARTITIONS
        prefix = f"sidecar:{self._name}.{next(self._numbers)}:"
        self._places.append(Place(self.server, prefix, partitions))
        return self._places[-1]

    def close(self) -> None:
        """Leave nothing behind."""
        for place in self._places:
            place.clear()
        self.server.close()

    @property
    def clients(self) -> int:
        """Connections that the server has."""
        return int(self.server.info("clients")["connected_clients"])


def opened(url: StoreUrl, limits: StoreLimits = LIMITS, timeout_s: float = 10.0) -> RedisRegistry:
    """A handle whose changes are the same each time, but for what the registry draws: nothing."""
    return RedisRegistry(url, LIFECYCLE, clock_us=ManualClock(), limits=limits, timeout_s=timeout_s)


async def with_registry(url: StoreUrl, work: Write) -> object:
    """Do *work* on the registry at *url*."""
    registry = opened(url)
    try:
        return await work(registry)
    finally:
        await registry.aclose()


async def repeated(registry: Registry, write: Write) -> None:
    """Make a change again; one without an idempotency key is refused when it is there already."""
    with contextlib.suppress(RefusedError):
        await write(registry)


async def verified(registry: Registry) -> bool:
    """Whether the whole registry verifies."""
    return (await verify_registry(registry)).is_intact


def is_whole_or_absent(left: Content, before: Content, after: Content) -> bool:
    """Whether every partition is as it was, or as the change makes it."""
    tags = {*left, *before, *after}
    return all(left.get(tag, {}) in (before.get(tag, {}), after.get(tag, {})) for tag in tags)

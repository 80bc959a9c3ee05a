"""Stores with failover, whose primary can be killed and whose successor can be observed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import redis

from loadtest.redis_servers import SERVICE, ClusterGroup, RedisServer, RedisServerError, SentinelGroup
from sidecar.stores.redis.keys import KeySpace

KINDS = ("sentinel", "cluster")
SILENCE_MS = 1_500
"""Silence after which a primary is replaced; longer than the stalls of a busy machine."""


class FailoverStore(Protocol):
    """A group of servers; every method except `url` blocks, so call it in a thread."""

    @property
    def url(self) -> str:
        """The URL of the store."""

    def epoch(self) -> int:
        """Return the configuration epoch, which increases with each failover."""

    def primary(self) -> RedisServer:
        """Return the current primary of partition 0."""

    def successor(self, killed: RedisServer) -> RedisServer | None:
        """Return the server that replaced *killed*; None = not replaced yet."""

    def stop(self) -> None:
        """Stop all processes."""


class SentinelStore:
    """One primary, two replicas, three Sentinels."""

    def __init__(self, folder: Path, silence_ms: int) -> None:
        """Start the servers."""
        self._group = SentinelGroup(folder, silence_ms)

    @property
    def url(self) -> str:
        """See `FailoverStore`."""
        return self._group.url

    def epoch(self) -> int:
        """See `FailoverStore`."""
        return self._group.epoch

    def primary(self) -> RedisServer:
        """See `FailoverStore`."""
        return self._group.primary

    def successor(self, killed: RedisServer) -> RedisServer | None:
        """See `FailoverStore`; asks the Sentinels, as clients do."""
        for sentinel in self._group.sentinels:
            try:
                _, port = sentinel.client.sentinel_get_master_addr_by_name(SERVICE)
            except redis.RedisError:
                continue
            if int(port) != killed.port:
                return next(server for server in self._group.servers if server.port == int(port))
        return None

    def stop(self) -> None:
        """See `FailoverStore`."""
        self._group.stop()


class ClusterStore:
    """Three primaries with a replica each; `primary` is that of partition 0."""

    def __init__(self, folder: Path, silence_ms: int) -> None:
        """Start the servers."""
        self._group = ClusterGroup(folder, silence_ms)
        self._slot = KeySpace().slot_of(0)

    @property
    def url(self) -> str:
        """See `FailoverStore`."""
        return self._group.url

    def epoch(self) -> int:
        """See `FailoverStore`."""
        return self._group.epoch

    def primary(self) -> RedisServer:
        """See `FailoverStore`."""
        return self._group.primary_of(self._slot)

    def successor(self, killed: RedisServer) -> RedisServer | None:
        """See `FailoverStore`."""
        try:
            owner = self._group.primary_of(self._slot)
        except (redis.RedisError, RedisServerError):
            return None
        return None if owner is killed else owner

    def stop(self) -> None:
        """See `FailoverStore`."""
        self._group.stop()


def start_store(kind: str, folder: Path, silence_ms: int = SILENCE_MS) -> FailoverStore:
    """
    Start a store of *kind* within some seconds; a primary is replaced after *silence_ms*.

    Raises:
        RedisServerError: the kind is unknown, or a server does not start.
    """
    if kind == "sentinel":
        return SentinelStore(folder, silence_ms)
    if kind == "cluster":
        return ClusterStore(folder, silence_ms)
    raise RedisServerError(f"kind of store is {kind!r}; it must be one of {', '.join(KINDS)}")

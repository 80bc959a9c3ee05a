"""The Redis processes of a run, alone, behind Sentinels or as a Cluster; their primary can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic_ns

from loadtest.redis_servers import ClusterGroup, RedisServer, SentinelGroup, await_fact

SILENCE_MS = 1_500
"""Silence after which a primary is replaced; longer than the stalls of a busy machine."""


class Store:
    """
    The store of a run.

    `outages` has, for each primary that was replaced, when it failed and when its successor was observed
    (CLOCK_MONOTONIC).
    """

    def __init__(self, kind: str, folder: Path) -> None:
        """
        Start a `redis`, `sentinel` or `cluster`.

        Raises:
            RedisServerError: a server does not start.
        """
        self._group: SentinelGroup | ClusterGroup | None = None
        if kind == "redis":
            self._servers = [RedisServer(folder).start()]
        else:
            group = SentinelGroup if kind == "sentinel" else ClusterGroup
            self._group = group(folder, SILENCE_MS)
            self._servers = self._group.servers
        self._epoch = self.epoch
        self._failed = self._servers[0]
        self.outages: list[tuple[int, int]] = []

    @property
    def url(self) -> str:
        """The URL for sidecars."""
        return self._servers[0].url if self._group is None else self._group.url

    @property
    def epoch(self) -> int:
        """The configuration epoch, which increases with each failover; 0 without failovers."""
        return 0 if self._group is None else self._group.epoch

    @property
    def failovers(self) -> int:
        """The number of failovers since the start."""
        return self.epoch - self._epoch

    @property
    def pids(self) -> list[int]:
        """The pids of the servers that hold data."""
        return [
            server.process.pid
            for server in self._servers
            if server.process is not None and server.process.poll() is None
        ]

    @property
    def actions(self) -> Mapping[str, Callable[[], None]]:
        """The events of a scenario that concern the store, by name."""
        return {
            "pause-redis": self._pause,
            "resume-redis": lambda: self._failed.thaw(),
            "kill-redis": self._kill,
            "start-redis": self._start,
            "fail-over": self._fail_over,
        }

    def stop(self) -> None:
        """Stop all processes."""
        for server in self._servers:
            server.thaw()
        for owner in self._servers if self._group is None else (self._group,):
            owner.stop()

    def _pause(self) -> None:
        self._failed = self._primary()
        self._failed.freeze()

    def _kill(self) -> None:
        self._failed = self._primary()
        self._replace(self._failed.kill)

    def _fail_over(self) -> None:
        assert isinstance(self._group, SentinelGroup)  # see `Scenario`
        self._failed = self._primary()
        self._replace(self._group.fail_over)

    def _start(self) -> None:
        if self._group is None:
            self._failed.start()
        else:
            self._group.restart(self._failed)

    def _primary(self) -> RedisServer:
        return self._servers[0] if self._group is None else self._group.primary

    def _replace(self, fail: Callable[[], None]) -> None:
        """Let the primary *fail*, and wait for its successor if there is one."""
        began_ns, group = monotonic_ns(), self._group
        fail()
        if group is not None:
            await_fact(lambda: group.successor(self._failed), "a successor of the primary")
            self.outages.append((began_ns, monotonic_ns()))

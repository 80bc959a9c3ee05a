"""What all connections of one HTTP server share: bounds, places, queues, timers and counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.transports.http1.exchange import Handler
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.work import FairQueue, Pace, WorkQueue
from sidecar.transports.memory import CONNECTION_BYTES, FreedMemory
from sidecar.transports.wheel import Loop, TimerWheel

READ_BYTES = 8_192
LOG_INTERVAL_S = 60.0
"""Refused requests and faults get one line each in so many seconds, with how many there were."""

_log = logging.getLogger("sidecar.http")


class ConnectionHandle(Protocol):
    """What the server needs of one of its connections."""

    @property
    def source(self) -> str:
        """Where it comes from; see `network_of`."""

    def work(self) -> None:
        """Do what is next."""

    def drain(self) -> None:
        """Close when the running request is answered, or now if there is none."""

    def abort(self, reason: str) -> None:
        """Close without a word."""


class HttpCore:
    """
    The state that connections share; one per server, used from its event loop alone.

    `connections` holds all, oldest first; `idle` those without a running request, in the order in which
    they became so: the first is closed when there is no place for a new one. `slow` holds those whose peer
    has not taken what was written.
    """

    def __init__(
        self, handler: Handler, limits: HttpLimits, pace: Pace, metrics: Metrics, loop: Loop,
        connections_max: int,
    ) -> None:  # fmt: skip
        """Serve *handler* on *loop*; *connections_max* goes before that of *limits*."""
        self.handler = handler
        self.limits = limits
        self.metrics = metrics
        self.loop = loop
        self.wheel = TimerWheel(loop)
        self._freed = FreedMemory(self.wheel)
        self.queue = WorkQueue(loop, pace)
        # Reads are handled to the end before the next one starts, so one buffer serves all.
        self.read_buffer = memoryview(bytearray(READ_BYTES))
        self.connections: dict[ConnectionHandle, None] = {}
        self.idle: dict[ConnectionHandle, None] = {}
        self.slow: dict[ConnectionHandle, None] = {}
        self.parked: FairQueue[ConnectionHandle] = FairQueue()
        self.is_draining = False
        self.on_left: Callable[[], None] = _nothing
        self._connections_max = connections_max
        self._sources: dict[str, int] = {}
        self._requests = 0
        self._unsent_bytes = 0
        self._logged_s: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def admit(self, connection: ConnectionHandle) -> bool:
        """Take a place for *connection*, if need be that of an idle one; False = there is none."""
        source = connection.source
        if source and self._sources.get(source, 0) >= self.limits.connections_per_source_max:
            oldest = next((idle for idle in self.idle if idle.source == source), None)
        elif len(self.connections) >= self._connections_max:
            oldest = next(iter(self.idle), None)
        else:
            return self._enter(connection)
        if oldest is None:
            self.metrics.add("sidecar_http_connections_closed_total", "connection_limit")
            return False
        oldest.abort("evicted")
        return self._enter(connection)

    def _enter(self, connection: ConnectionHandle) -> bool:
        self.connections[connection] = self.idle[connection] = None
        self._sources[connection.source] = self._sources.get(connection.source, 0) + 1
        self.metrics.add("sidecar_http_connections_open")
        return True

    def leave(self, connection: ConnectionHandle, reason: str) -> None:
        """Forget a closed connection and count why it closed; again: nothing."""
        if self.connections.pop(connection, connection) is not None:
            return
        self.idle.pop(connection, None)
        self.slow.pop(connection, None)
        self.parked.discard(connection)
        self.queue.discard(connection)
        count = self._sources.pop(connection.source) - 1
        if count:
            self._sources[connection.source] = count
        self._freed.add(CONNECTION_BYTES, self.loop.time())
        self.metrics.add("sidecar_http_connections_open", by=-1)
        self.metrics.add("sidecar_http_connections_closed_total", reason)
        self.on_left()

    def take_place(self) -> bool:
        """Take a place for a request of a stranger; False = it has to wait."""
        if self._requests >= self.limits.requests_max:
            return False
        self._requests += 1
        return True

    def give_place(self) -> None:
        """Give a place back; a request that waits may take it."""
        self._requests -= 1
        if self.parked:
            self.queue.add(self.parked.pop())

    def count_unsent(self, change_bytes: int) -> None:
        """Peers have taken less (or more) by *change_bytes*; past the bound, who began first is cut off."""
        self._unsent_bytes += change_bytes
        while self._unsent_bytes > self.limits.unsent_bytes_max and self.slow:
            next(iter(self.slow)).abort("memory_limit")

    def count_refused(self, status: int, detail: str, source: str) -> None:
        """Count a request that could not be served, and log it unless that was just done."""
        self.metrics.add("sidecar_http_requests_refused_total", str(status))
        count = self._count_line("refused")
        if count:
            log_event(
                _log, logging.WARNING, "refused HTTP requests", count=count, last_status=status,
                last_detail=detail, last_source=source or "unix socket",
            )  # fmt: skip

    def log_fault(self, what: str) -> None:
        """Log the exception being handled: a fault of ours."""
        count = self._count_line(what)
        if count:
            _log.exception("%s failed (%d times since the last such line)", what, count)

    def _count_line(self, kind: str) -> int:
        """How many events of *kind* the line tells that may be written now; 0 = none may."""
        now_s = self.loop.time()
        count = self._unlogged.get(kind, 0) + 1
        is_due = now_s - self._logged_s.get(kind, float("-inf")) >= LOG_INTERVAL_S
        if is_due:
            self._logged_s[kind] = now_s
        self._unlogged[kind] = 0 if is_due else count
        return count if is_due else 0


def _nothing() -> None:
    """Nobody wants to be told."""

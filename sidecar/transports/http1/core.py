"""The shared state of all connections of one HTTP server: limits, slots, queues, timers and counters."""

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
"""Interval between log lines about refused requests or faults; each line has their number since the last."""

_log = logging.getLogger("sidecar.http")


class ConnectionHandle(Protocol):
    """The interface of a connection for the server."""

    @property
    def source(self) -> str:
        """The source network of the peer; see `network_of`."""

    def work(self) -> None:
        """Do the next piece of work."""

    def drain(self) -> None:
        """Close after the running request, or now if there is none."""

    def abort(self, reason: str) -> None:
        """Close immediately, without an answer."""


class HttpCore:
    """
    The shared state of connections; one per server, used only on its event loop.

    `connections` are all, oldest first; `idle` are those without a running request, longest idle first: the
    first is closed if a new connection needs its slot. `slow` are those whose peer does not read its answer.
    `waiting` are those whose request waits for a slot; `requests` counts the slots in use, `unsent_bytes` the
    bytes of answers that peers have not read.
    """

    def __init__(
        self, handler: Handler, limits: HttpLimits, pace: Pace, metrics: Metrics, loop: Loop,
        connections_max: int, observe_ns: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        """
        Serve *handler* on *loop*; *connections_max* overrides `limits.connections_max`.

        *observe_ns* receives the duration of each request; None = it is not measured.
        """
        self.observe_ns = observe_ns
        self._values = metrics.values
        self._running_slot = metrics.slot("sidecar_http_requests_running")
        self.handler = handler
        self.limits = limits
        self.metrics = metrics
        self.loop = loop
        self.wheel = TimerWheel(loop)
        self._freed = FreedMemory(self.wheel)
        self.queue = WorkQueue(loop, pace)
        # Each read is handled completely before the next one, so all connections share one buffer.
        self.read_buffer = memoryview(bytearray(READ_BYTES))
        self.connections: dict[ConnectionHandle, None] = {}
        self.idle: dict[ConnectionHandle, None] = {}
        self.slow: dict[ConnectionHandle, None] = {}
        self.waiting: FairQueue[ConnectionHandle] = FairQueue()
        self.is_draining = False
        self.on_closed: Callable[[], None] = _ignore
        self._connections_max = connections_max
        self._sources: dict[str, int] = {}
        self.requests = 0
        self.unsent_bytes = 0
        self._logged_s: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def admit(self, connection: ConnectionHandle) -> bool:
        """Take a slot for *connection*, closing an idle connection if necessary; False = none is free."""
        source = connection.source
        if source and self._sources.get(source, 0) >= self.limits.connections_per_source_max:
            oldest = next((idle for idle in self.idle if idle.source == source), None)
        elif len(self.connections) >= self._connections_max:
            oldest = next(iter(self.idle), None)
        else:
            return self._add(connection)
        if oldest is None:
            self.metrics.add("sidecar_http_connections_closed_total", "connection_limit")
            return False
        oldest.abort("evicted")
        return self._add(connection)

    def _add(self, connection: ConnectionHandle) -> bool:
        self.connections[connection] = self.idle[connection] = None
        self._sources[connection.source] = self._sources.get(connection.source, 0) + 1
        self.metrics.add("sidecar_http_connections_open")
        return True

    def remove(self, connection: ConnectionHandle, reason: str) -> None:
        """Remove a closed connection and count *reason*; a second call does nothing."""
        if self.connections.pop(connection, connection) is not None:
            return
        self.idle.pop(connection, None)
        self.slow.pop(connection, None)
        self.waiting.discard(connection)
        self.queue.discard(connection)
        count = self._sources.pop(connection.source) - 1
        if count:
            self._sources[connection.source] = count
        self._freed.add(CONNECTION_BYTES, self.loop.time())
        self.metrics.add("sidecar_http_connections_open", by=-1)
        self.metrics.add("sidecar_http_connections_closed_total", reason)
        self.on_closed()

    def begin_request(self) -> bool:
        """Take a slot for an unauthenticated request; False = the request must wait."""
        if self.requests >= self.limits.requests_max:
            return False
        self.requests += 1
        self._values[self._running_slot] += 1
        return True

    def end_request(self) -> None:
        """Release a slot, for the next waiting request."""
        self.requests -= 1
        self._values[self._running_slot] -= 1
        if self.waiting:
            self.queue.add(self.waiting.pop())

    def add_unsent(self, change_bytes: int) -> None:
        """Change the total of unsent bytes; over the limit, abort the connections that are slow longest."""
        self.unsent_bytes += change_bytes
        while self.unsent_bytes > self.limits.unsent_bytes_max and self.slow:
            next(iter(self.slow)).abort("memory_limit")

    def count_refused(self, status: int, detail: str, source: str) -> None:
        """Count a refused request, and log it at most once per LOG_INTERVAL_S."""
        self.metrics.add("sidecar_http_requests_refused_total", str(status))
        count = self._count_line("refused")
        if count:
            log_event(
                _log, logging.WARNING, "refused HTTP requests", count=count, last_status=status,
                last_detail=detail, last_source=source or "unix socket",
            )  # fmt: skip

    def log_fault(self, what: str) -> None:
        """Log the current exception as an internal error, at most once per LOG_INTERVAL_S."""
        count = self._count_line(what)
        if count:
            _log.exception("%s failed (%d times since the last log line)", what, count)

    def _count_line(self, kind: str) -> int:
        """Count an event of *kind*; return the number to log now, 0 = do not log."""
        now_s = self.loop.time()
        count = self._unlogged.get(kind, 0) + 1
        is_due = now_s - self._logged_s.get(kind, float("-inf")) >= LOG_INTERVAL_S
        if is_due:
            self._logged_s[kind] = now_s
        self._unlogged[kind] = 0 if is_due else count
        return count if is_due else 0


def _ignore() -> None:
    """Do nothing."""

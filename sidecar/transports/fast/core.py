"""The shared state of all connections of one server: methods, limits, usage, clock and counters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from random import Random
from time import monotonic
from typing import Final, Protocol

from sidecar.observe.metrics import Metrics
from sidecar.observe.transport_metrics import CLOSE_REASONS, GRPC_CODES
from sidecar.rpc.calls import Method, method_table
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.transports.fast.engine import configuration
from sidecar.transports.fast.held import HeldMemory
from sidecar.transports.fast.read_scheduler import ReadScheduler
from sidecar.transports.memory import CONNECTION_BYTES, FreedMemory
from sidecar.transports.server import TransportLimits
from sidecar.transports.wheel import Loop, TimerWheel

SHARE_CALLS: Final = 16
"""Minimum share of a loop turn for one connection, in calls."""

UNDIVIDED_CALLS: Final = 32
"""Calls of one connection that are handled in one turn without a share, to save writes."""

_log: Final = logging.getLogger("sidecar.transports")


class ConnectionHandle(Protocol):
    """The interface of a connection for the server."""

    def drain(self, reason: str, cut_at_s: float = float("inf")) -> None:
        """Send GOAWAY, finish running calls, then close; at the latest, cut the connection at *cut_at_s*."""

    def cut(self) -> bool:
        """Send GOAWAY and close now; True = an unanswered call or an unread answer was cut off."""

    def abort(self) -> None:
        """Close now, without sending anything."""


class Core:
    """
    The shared state of connections; one per server, used only on its event loop.

    A connection may handle `undivided_calls` in a turn without `take_share`. `open` counts connections
    including TLS handshakes, `running` counts running handlers, `buffered_bytes` are those of unfinished
    requests. The limits use these counters and not the gauges, which may have values of an earlier process.
    """

    __slots__ = (
        "_calls_left",
        "_faults_logged_s",
        "_share_calls",
        "_share_calls_min",
        "_sharers",
        "buffered_bytes",
        "check_interval_s",
        "closed_slots",
        "code_slots",
        "connections",
        "freed",
        "h2_options",
        "held",
        "http_error_delay_s",
        "is_draining",
        "limits",
        "loop",
        "methods",
        "observe_request_ns",
        "on_connection_closed",
        "open",
        "open_slot",
        "peers",
        "random",
        "running",
        "running_slot",
        "scheduler",
        "turn",
        "undivided_calls",
        "values",
        "wheel",
    )

    def __init__(
        self,
        methods: Iterable[Method],
        limits: TransportLimits,
        metrics: Metrics,
        loop: Loop,
        random: Random | None = None,
        http_error_delay_s: float = 0.0,
        clock: Callable[[], float] = monotonic,
        turn: LoopTurn | None = None,
    ) -> None:
        """
        Look up all counters once.

        Args:
            random: jitters connection ages; tests seed it.
            http_error_delay_s: delays 405 and 415, for a conformance tool whose second frame makes the
                request invalid and which must not see the answer to the first frame.
            clock: measures the time of handling, in seconds.
            turn: shared with the store that the methods take from; None = no shared store.

        Raises:
            ValueError: two methods share a path.
        """
        self.methods = {path.encode(): method for path, method in method_table(methods).items()}
        self.limits = limits
        self.check_interval_s = limits.check_interval_s
        self.loop = loop
        self.random = random or Random()  # noqa: S311 - jitter, no secret
        self.http_error_delay_s = http_error_delay_s
        self.wheel = TimerWheel(loop)
        self.freed = FreedMemory(self.wheel)
        self.h2_options = configuration(limits)
        values = metrics.values
        postponed_slot = metrics.slot("sidecar_reads_postponed_total")

        def count_postponed() -> None:
            values[postponed_slot] += 1

        self.scheduler = ReadScheduler(loop, clock, count_postponed)
        self.held = HeldMemory(limits, metrics)
        self.connections: set[ConnectionHandle] = set()
        self.peers: dict[str, int] = {}
        self.open = 0
        self.running = 0
        self.buffered_bytes = 0
        self.is_draining = False
        self.on_connection_closed: Callable[[], None] = _ignore
        self.turn = turn or LoopTurn(loop)
        self.values = metrics.values
        self.running_slot = metrics.slot("sidecar_calls_running")
        self.observe_request_ns = metrics.histogram("sidecar_request_duration_seconds", "grpc").observe_ns
        self.open_slot = metrics.slot("sidecar_connections_open")
        self.code_slots = [metrics.slot("sidecar_calls_total", code) for code in GRPC_CODES]
        self.closed_slots = {
            reason: metrics.slot("sidecar_connections_closed_total", reason) for reason in CLOSE_REASONS
        }
        self._faults_logged_s = float("-inf")
        self.undivided_calls = min(UNDIVIDED_CALLS, limits.calls_per_turn_max)
        self._share_calls_min = min(SHARE_CALLS, limits.calls_per_turn_max)
        self._calls_left = 0
        self._share_calls = limits.calls_per_turn_max
        self._sharers = 0

    def admit(self, peer: str) -> bool:
        """Take a slot for a connection of *peer* ('' = not counted); False = none is free."""
        if self.open >= self.limits.connections_max:
            return False
        if peer:
            count = self.peers.get(peer, 0)
            if count >= self.limits.connections_per_peer_max:
                return False
            self.peers[peer] = count + 1
        self.open += 1
        self.values[self.open_slot] = self.open
        return True

    def release(self, peer: str, reason: str, held_bytes: int = 0) -> None:
        """Release the slot of a closed connection, which held *held_bytes*, and count *reason*."""
        self.open -= 1
        self.values[self.open_slot] = self.open
        self.values[self.closed_slots[reason]] += 1
        self.freed.add(CONNECTION_BYTES + held_bytes, self.loop.time())
        if peer:
            count = self.peers[peer] - 1
            if count:
                self.peers[peer] = count
            else:
                del self.peers[peer]

    def take_share(self, calls: int) -> int:
        """
        Return how many of *calls* waiting on one connection may be handled in this loop turn.

        The connections of a turn share `calls_per_turn_max` equally, based on their number in the previous
        turn; each gets at least SHARE_CALLS. So many busy connections hardly make a turn longer than a
        single one.
        """
        if not self._sharers:
            self._calls_left = self.limits.calls_per_turn_max
            self.loop.call_soon(self._end_shares)
        self._sharers += 1
        share = min(calls, max(self._share_calls_min, min(self._calls_left, self._share_calls)))
        self._calls_left -= share
        return share

    def _end_shares(self) -> None:
        self._share_calls = self.limits.calls_per_turn_max // self._sharers
        self._sharers = 0

    def after_read_batch(self) -> None:
        """Exchange takes and replies with the store after some calls of this turn."""
        try:
            self.turn.after_read_batch()
        except Exception:
            self.log_fault("the exchange with the store")

    def log_fault(self, what: str) -> None:
        """Log the current exception as an internal error, at most once per second."""
        now_s = self.loop.time()
        if now_s - self._faults_logged_s >= 1.0:
            self._faults_logged_s = now_s
            _log.exception("%s failed", what)


def _ignore() -> None:
    """Do nothing."""

"""What all connections of one server share: methods, limits, the process's accounts, clock, counters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from random import Random
from time import monotonic
from typing import Protocol

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import CLOSE_REASONS, GRPC_CODES
from sidecar.rpc.calls import Method, method_table
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.transports.fast.engine import configuration
from sidecar.transports.fast.held import HeldMemory
from sidecar.transports.fast.turns import Turns
from sidecar.transports.memory import CONNECTION_BYTES, FreedMemory
from sidecar.transports.server import TransportLimits
from sidecar.transports.wheel import Loop, TimerWheel

SHARE_CALLS = 16
"""A connection's share of a turn of the loop is no smaller, however many others have one."""

UNDIVIDED_CALLS = 32
"""So few calls of one connection are never divided: each part would have a write and more of its own."""

_log = logging.getLogger("sidecar.transports")


class ConnectionHandle(Protocol):
    """What the server needs of one of its connections."""

    def drain(self, reason: str, cut_at_s: float = ...) -> None:
        """Ask the client to go elsewhere, finish what runs, close; cut at *cut_at_s* if need be."""

    def cut(self) -> bool:
        """Close at once; True = an unanswered call or an untaken answer was cut off."""

    def abort(self) -> None:
        """Close without a word, whatever is unwritten."""


class Core:
    """
    The state that connections share; one per server, used from its event loop alone.

    So many calls as `undivided_calls` a connection may have handled in a turn without asking for its share.
    `open` counts connections, TLS handshakes included, `running` handlers that have not ended,
    `buffered_bytes` those of unfinished requests. Gauges follow them: what a gauge in shared memory
    held before this process is no concern of its limits.
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
        "on_connection_left",
        "open",
        "open_slot",
        "peers",
        "random",
        "running",
        "running_slot",
        "turn",
        "turns",
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
        Look up every counter once.

        Args:
            random: jitters connection ages; tests seed it.
            http_error_delay_s: hold 405 and 415 back. A conformance tool that spoils a request with
                its second frame would otherwise see the answer to the first one win the race.
            clock: measures what handling takes, in seconds.
            turn: shared with the store that the methods take from; None = there is no shared store.

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

        self.turns = Turns(loop, clock, count_postponed)
        self.held = HeldMemory(limits, metrics)
        self.connections: set[ConnectionHandle] = set()
        self.peers: dict[str, int] = {}
        self.open = 0
        self.running = 0
        self.buffered_bytes = 0
        self.is_draining = False
        self.on_connection_left: Callable[[], None] = _nothing
        self.turn = turn or LoopTurn(loop)
        self.values = metrics.values
        self.running_slot = metrics.slot("sidecar_calls_running")
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
        """Take a place for one more connection of *peer* ('' = uncounted); False = there is none."""
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

    def leave(self, peer: str, reason: str, held_bytes: int = 0) -> None:
        """Give the place of a closed connection back, which held *held_bytes*, and count why it closed."""
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
        How many of *calls* that wait on one connection may be handled in this turn of the loop.

        All that ask draw on `calls_per_turn_max`, in equal parts if as many ask as did in the turn before;
        each gets SHARE_CALLS. So a turn in which many connections have much to say is hardly longer
        than one in which a single one has.
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
        """Some calls of this turn have been handled: look after those that wait for the store."""
        try:
            self.turn.after_read_batch()
        except Exception:
            self.log_fault("looking after calls that wait for the store")

    def log_fault(self, what: str) -> None:
        """Log the exception being handled: a fault of ours. At most once a second, whatever comes in."""
        now_s = self.loop.time()
        if now_s - self._faults_logged_s >= 1.0:
            self._faults_logged_s = now_s
            _log.exception("%s failed", what)


def _nothing() -> None:
    """Nobody wants to be told."""

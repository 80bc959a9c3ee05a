"""
Decides when to end a connection: handshake, idle time, age, keepalive, and the steps of a drain.

It is pure: it gets events and returns the next step, which `connection` executes. A drain has two steps
(RFC 9113 6.8): a GOAWAY that only announces, and after one round trip a GOAWAY with the last stream. So
requests in flight are not lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from sidecar.transports.fast.engine import STREAM_ID_MAX, H2Error
from sidecar.transports.server import TransportLimits

ANNOUNCE_S: Final = 1.0
"""Maximum wait for the PING ack of the first drain step; local peers answer within a millisecond."""

LINGER_S: Final = 1.0
"""Reading time after our last byte, so that a TCP reset does not destroy the byte in flight."""

FLOOD_GRACE_S: Final = 5.0
"""Time for the running calls of a flooding peer."""

STREAM_ID_DRAIN: Final = STREAM_ID_MAX // 4 * 3
"""Drain before stream ids run out (RFC 9113 5.1.1); at 80,000 streams per second that takes 5 hours."""


class Act(Enum):
    """The actions on a connection."""

    NOTHING = auto()
    PING = auto()  # keepalive
    DRAIN = auto()  # begin a drain
    GO_AWAY = auto()  # second step of a drain
    CUT = auto()  # a drain has taken too long
    KILL = auto()  # GOAWAY with a code, then close
    ABORT = auto()  # close without sending anything: the peer does not respond


@dataclass(frozen=True, slots=True)
class LifetimeStep:
    """One action, with the close reason and the GOAWAY code if they apply."""

    act: Act
    reason: str = ""
    code: int = 0
    cut_at_s: float = float("inf")


_NOTHING: Final = LifetimeStep(Act.NOTHING)


class Phase(Enum):
    """The phases of a connection until it closes."""

    SERVING = auto()
    ANNOUNCED = auto()  # a drain is announced, new streams are accepted
    CLOSING = auto()  # the last stream is named, running calls end
    LINGERING = auto()  # all output is written; waiting for the peer to close


class Lifetime:
    """
    The time-outs of one connection.

    `read_s` is the time of the last read. `silent_since_s` is the time since which reads completed no frame.
    """

    __slots__ = (
        "_age_limit_s",
        "_announce_until_s",
        "_cut_at_s",
        "_idle_since_s",
        "_limits",
        "_linger_until_s",
        "_opened_s",
        "_pinged_s",
        "_streams_seen",
        "has_settings_ack",
        "phase",
        "read_s",
        "silent_since_s",
    )

    def __init__(self, limits: TransportLimits, now_s: float, jitter: float) -> None:
        """
        Start at *now_s*.

        Args:
            jitter: -0.1 ... 0.1 of the maximum age, so that connections do not end at the same time.
        """
        self._limits = limits
        self._opened_s = now_s
        age_s = limits.connection_age_max_s
        self._age_limit_s = now_s + age_s * (1.0 + jitter) if age_s else float("inf")
        self._idle_since_s = now_s
        self._streams_seen = 0
        self._pinged_s: float | None = None
        self._announce_until_s = self._cut_at_s = self._linger_until_s = float("inf")
        self.has_settings_ack = False
        self.phase = Phase.SERVING
        self.read_s = now_s
        self.silent_since_s: float | None = None

    def read_incomplete(self, now_s: float) -> bool:
        """Record a read that completed no frame; False = the frame has taken too long."""
        if not self.has_settings_ack:
            return True  # the handshake has its own time-out
        if self.silent_since_s is None:
            self.silent_since_s = now_s
        return now_s - self.silent_since_s < self._limits.header_timeout_s

    def drain(self, now_s: float, cut_at_s: float) -> bool:
        """Begin a drain, cut at *cut_at_s*; False = a drain is in progress, and the earlier cut applies."""
        self._cut_at_s = min(self._cut_at_s, cut_at_s)
        if self.phase is not Phase.SERVING:
            return False
        self.phase = Phase.ANNOUNCED
        self._announce_until_s = now_s + ANNOUNCE_S
        return True

    def go_away(self, cut_at_s: float = float("inf")) -> None:
        """Record that GOAWAY with the last stream was sent."""
        self.phase = Phase.CLOSING
        self._cut_at_s = min(self._cut_at_s, cut_at_s)

    def linger(self, now_s: float) -> None:
        """Record that all output was written."""
        self.phase = Phase.LINGERING
        self._linger_until_s = now_s + LINGER_S
        self._cut_at_s = min(self._cut_at_s, now_s + self._limits.write_timeout_s)

    def next_step(
        self, now_s: float, streams_open: int, streams_seen: int, last_stream_id: int
    ) -> LifetimeStep:
        """Return the step that is due."""
        if streams_open or streams_seen != self._streams_seen:
            self._streams_seen = streams_seen
            self._idle_since_s = now_s
        if self.phase is Phase.SERVING:
            return self._next_while_serving(now_s, streams_open, last_stream_id)
        return self._next_while_draining(now_s)

    def may_end_lingering(self, now_s: float, unwritten_bytes: int) -> bool:
        """Return whether a lingering connection may close; unwritten bytes get more time."""
        return now_s >= (self._cut_at_s if unwritten_bytes else self._linger_until_s)

    def _next_while_draining(self, now_s: float) -> LifetimeStep:
        if now_s >= self._cut_at_s:
            return LifetimeStep(Act.CUT)
        if self.phase is Phase.ANNOUNCED and now_s >= self._announce_until_s:
            return LifetimeStep(Act.GO_AWAY)
        return self._keepalive(now_s)

    def _next_while_serving(self, now_s: float, streams_open: int, last_stream_id: int) -> LifetimeStep:
        limits = self._limits
        if not self.has_settings_ack and now_s - self._opened_s >= limits.handshake_timeout_s:
            # RFC 9113 6.5.3; also without a preface, although such a peer may not read it.
            return LifetimeStep(Act.KILL, "handshake", H2Error.SETTINGS_TIMEOUT)
        if self.silent_since_s is not None and now_s - self.silent_since_s >= limits.header_timeout_s:
            # Drained and not killed: a complete frame that is ignored also makes no event.
            return LifetimeStep(Act.DRAIN, "header_timeout", cut_at_s=now_s + limits.header_timeout_s)
        if now_s >= self._age_limit_s or last_stream_id >= STREAM_ID_DRAIN:
            return LifetimeStep(Act.DRAIN, "max_age", cut_at_s=now_s + limits.connection_age_grace_s)
        if not streams_open and now_s - self._idle_since_s >= limits.idle_timeout_s:
            return LifetimeStep(Act.DRAIN, "idle", cut_at_s=now_s + limits.connection_age_grace_s)
        return self._keepalive(now_s)

    def _keepalive(self, now_s: float) -> LifetimeStep:
        # gRPC proposal A9: any byte answers our PING, not only its ack.
        if self._pinged_s is not None and self.read_s >= self._pinged_s:
            self._pinged_s = None
        if self._pinged_s is not None:
            late = now_s - self._pinged_s >= self._limits.keepalive_timeout_s
            return LifetimeStep(Act.ABORT, "keepalive") if late else _NOTHING
        if now_s - self.read_s < self._limits.keepalive_interval_s:
            return _NOTHING
        self._pinged_s = now_s
        return LifetimeStep(Act.PING)

"""
When a connection ends by itself: handshake, idleness, age, keepalive, and the steps of a drain.

Pure: it is told what happened and says what to do next; `connection` does it. A drain has two steps
(RFC 9113 6.8): a GOAWAY that only announces, and after one round trip the one that names the last
stream. Between them no request is lost, however many were under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from sidecar.transports.fast.engine import STREAM_ID_MAX, H2Error
from sidecar.transports.server import TransportLimits

NOTICE_S = 1.0
"""How long to wait for the PING of the first drain step; local peers answer in a millisecond."""

LINGER_S = 1.0
"""How long to read on after our last byte, so that a TCP reset does not destroy it under way."""

CALM_GRACE_S = 5.0
"""How long running calls of a flooding peer may still take."""

STREAM_ID_DRAIN = STREAM_ID_MAX // 4 * 3
"""RFC 9113 5.1.1: stream ids run out; a client that uses 80,000 a second gets here in 5 hours."""


class Act(Enum):
    """What to do with a connection now."""

    NOTHING = auto()
    PING = auto()  # keepalive
    DRAIN = auto()  # begin a drain
    GO_AWAY = auto()  # second step of a drain
    CUT = auto()  # a drain has taken too long
    KILL = auto()  # GOAWAY with a code, then close
    ABORT = auto()  # close without a word: nobody listens


@dataclass(frozen=True, slots=True)
class LifetimeStep:
    """One act, with the close reason and the GOAWAY code where they matter."""

    act: Act
    reason: str = ""
    code: int = 0
    cut_at_s: float = float("inf")


_NOTHING = LifetimeStep(Act.NOTHING)


class Phase(Enum):
    """How far a connection is on its way out."""

    SERVING = auto()
    NOTICED = auto()  # GOAWAY announced, streams still accepted
    GOING = auto()  # last stream named, running calls end
    LINGERING = auto()  # all said; reading to the end


class Lifetime:
    """
    The clock of one connection.

    `read_s` is set at each read. `silent_since_s`: bytes came since then that made no whole frame.
    """

    __slots__ = (
        "_age_limit_s",
        "_cut_at_s",
        "_idle_since_s",
        "_limits",
        "_linger_until_s",
        "_notice_until_s",
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
        A connection accepted at *now_s*.

        Args:
            jitter: -0.1 ... 0.1 of the maximum age, so that connections do not all end together.
        """
        self._limits = limits
        self._opened_s = now_s
        age_s = limits.connection_age_max_s
        self._age_limit_s = now_s + age_s * (1.0 + jitter) if age_s else float("inf")
        self._idle_since_s = now_s
        self._streams_seen = 0
        self._pinged_s: float | None = None
        self._notice_until_s = self._cut_at_s = self._linger_until_s = float("inf")
        self.has_settings_ack = False
        self.phase = Phase.SERVING
        self.read_s = now_s
        self.silent_since_s: float | None = None

    def read_silently(self, now_s: float) -> bool:
        """Bytes came that completed no frame; False = one frame has been on its way for too long."""
        if not self.has_settings_ack:
            return True  # the handshake has its own time
        if self.silent_since_s is None:
            self.silent_since_s = now_s
        return now_s - self.silent_since_s < self._limits.header_timeout_s

    def drain(self, now_s: float, cut_at_s: float) -> bool:
        """Begin a drain, to be cut at *cut_at_s*; False = one is under way (it is cut at the sooner)."""
        self._cut_at_s = min(self._cut_at_s, cut_at_s)
        if self.phase is not Phase.SERVING:
            return False
        self.phase = Phase.NOTICED
        self._notice_until_s = now_s + NOTICE_S
        return True

    def go_away(self, cut_at_s: float = float("inf")) -> None:
        """The last stream has been named."""
        self.phase = Phase.GOING
        self._cut_at_s = min(self._cut_at_s, cut_at_s)

    def linger(self, now_s: float) -> None:
        """All has been said."""
        self.phase = Phase.LINGERING
        self._linger_until_s = now_s + LINGER_S
        self._cut_at_s = min(self._cut_at_s, now_s + self._limits.write_timeout_s)

    def next_step(
        self, now_s: float, streams_open: int, streams_seen: int, last_stream_id: int
    ) -> LifetimeStep:
        """What is due now."""
        if streams_open or streams_seen != self._streams_seen:
            self._streams_seen = streams_seen
            self._idle_since_s = now_s
        if self.phase is Phase.SERVING:
            return self._next_while_serving(now_s, streams_open, last_stream_id)
        return self._next_on_the_way_out(now_s)

    def may_end_lingering(self, now_s: float, unwritten_bytes: int) -> bool:
        """Whether a lingering connection has waited long enough; unwritten bytes get more time."""
        return now_s >= (self._cut_at_s if unwritten_bytes else self._linger_until_s)

    def _next_on_the_way_out(self, now_s: float) -> LifetimeStep:
        if now_s >= self._cut_at_s:
            return LifetimeStep(Act.CUT)
        if self.phase is Phase.NOTICED and now_s >= self._notice_until_s:
            return LifetimeStep(Act.GO_AWAY)
        return self._keepalive(now_s)

    def _next_while_serving(self, now_s: float, streams_open: int, last_stream_id: int) -> LifetimeStep:
        limits = self._limits
        if not self.has_settings_ack and now_s - self._opened_s >= limits.handshake_timeout_s:
            # RFC 9113 6.5.3. Without even a preface there is nobody to explain it to, but it is cheap.
            return LifetimeStep(Act.KILL, "handshake", H2Error.SETTINGS_TIMEOUT)
        if self.silent_since_s is not None and now_s - self.silent_since_s >= limits.header_timeout_s:
            # Not killed: what made no event may have been a whole frame that we ignore.
            return LifetimeStep(Act.DRAIN, "header_timeout", cut_at_s=now_s + limits.header_timeout_s)
        if now_s >= self._age_limit_s or last_stream_id >= STREAM_ID_DRAIN:
            return LifetimeStep(Act.DRAIN, "max_age", cut_at_s=now_s + limits.connection_age_grace_s)
        if not streams_open and now_s - self._idle_since_s >= limits.idle_timeout_s:
            return LifetimeStep(Act.DRAIN, "idle", cut_at_s=now_s + limits.connection_age_grace_s)
        return self._keepalive(now_s)

    def _keepalive(self, now_s: float) -> LifetimeStep:
        # gRPC proposal A9: any byte answers our PING, not its ack alone.
        if self._pinged_s is not None and self.read_s >= self._pinged_s:
            self._pinged_s = None
        if self._pinged_s is not None:
            late = now_s - self._pinged_s >= self._limits.keepalive_timeout_s
            return LifetimeStep(Act.ABORT, "keepalive") if late else _NOTHING
        if now_s - self.read_s < self._limits.keepalive_interval_s:
            return _NOTHING
        self._pinged_s = now_s
        return LifetimeStep(Act.PING)

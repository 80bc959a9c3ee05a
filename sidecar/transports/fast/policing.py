"""
Limits on floods by a peer: one limit for each kind of flood that ngh2 does not limit itself.

Each limit has a rate and a burst that a busy normal client never reaches. The limits of ngh2 (CONTINUATION,
HPACK bombs, PRIORITY, empty DATA, unknown frames) are in `engine`.
"""

from __future__ import annotations

from typing import Final

from sidecar.transports.server import TransportLimits

SETTINGS_BURST: Final = 32  # SETTINGS floods, and window flips over many streams (CVE-2019-9515)
SETTINGS_PER_S: Final = 1.0

PING_STRIKES_MAX: Final = 2  # gRPC proposal A8

WINDOW_UPDATES_FREE: Final = 5  # the formula is Envoy's: free + 2 x (streams + 10 x DATA sent)
WINDOW_UPDATES_PER_STREAM: Final = 2
WINDOW_UPDATES_PER_DATA: Final = 20
WINDOW_UPDATES_SAVED_MAX: Final = 10_000  # whatever the age of the connection

PIECES_FREE: Final = 16  # DATA frames of one message, plus one per PIECE_BYTES
PIECE_BYTES: Final = 256


class TokenBucket:
    """An approximate token bucket for floods, unrelated to the exact buckets of rate limits."""

    __slots__ = ("_burst", "_per_s", "_tokens", "_updated_s")

    def __init__(self, burst: float, per_s: float, now_s: float) -> None:
        """Start full at *now_s*."""
        self._burst = burst
        self._per_s = per_s
        self._tokens = burst
        self._updated_s = now_s

    def take(self, now_s: float) -> bool:
        """Take one token; False = the bucket is empty."""
        tokens = min(self._burst, self._tokens + (now_s - self._updated_s) * self._per_s)
        self._updated_s = now_s
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True


def has_tiny_frames(pieces: int, received_bytes: int) -> bool:
    """Return whether a message of *received_bytes* so far has too many DATA frames."""
    return pieces > PIECES_FREE + received_bytes // PIECE_BYTES


class Policing:
    """The limits of one connection. Every method returns False if the peer has exceeded the limit."""

    __slots__ = (
        "_answers_at_ping",
        "_data_seen",
        "_early_ends",
        "_ping_interval_s",
        "_ping_strikes",
        "_pinged_s",
        "_settings",
        "_streams_seen",
        "_window_updates_left",
    )

    def __init__(self, limits: TransportLimits, now_s: float) -> None:
        """Start with full buckets at *now_s*."""
        self._early_ends = TokenBucket(limits.resets_burst, limits.resets_per_s, now_s)
        self._settings = TokenBucket(SETTINGS_BURST, SETTINGS_PER_S, now_s)
        self._ping_interval_s = limits.ping_interval_min_s
        self._ping_strikes = 0
        self._pinged_s = float("-inf")
        self._answers_at_ping = 0
        self._window_updates_left = WINDOW_UPDATES_FREE
        self._streams_seen = 0
        self._data_seen = 0

    def early_end(self, now_s: float) -> bool:
        """
        Count a stream that the peer ended or made invalid before the answer.

        Attacks: rapid reset (CVE-2023-44487), and making the server reset (MadeYouReset, CVE-2025-8671).
        """
        return self._early_ends.take(now_s)

    def settings(self, now_s: float) -> bool:
        """Count a SETTINGS frame."""
        return self._settings.take(now_s)

    def ping(self, now_s: float, answers: int) -> bool:
        """
        Count a PING; *answers* is the number of answers sent so far.

        gRPC proposal A8: a PING before the permitted interval is a strike, and sending HEADERS or DATA clears
        all strikes (clients measure bandwidth with PINGs around answers).
        """
        if answers != self._answers_at_ping:
            self._answers_at_ping = answers
            self._ping_strikes = 0
        elif now_s - self._pinged_s < self._ping_interval_s:
            self._ping_strikes += 1
            return self._ping_strikes <= PING_STRIKES_MAX
        self._pinged_s = now_s
        return True

    def window_update(self, streams: int, data_frames: int) -> bool:
        """Count a WINDOW_UPDATE; *streams* and *data_frames* are their numbers so far."""
        if self._window_updates_left == 0:
            earned = WINDOW_UPDATES_PER_STREAM * (streams - self._streams_seen)
            earned += WINDOW_UPDATES_PER_DATA * (data_frames - self._data_seen)
            self._streams_seen = streams
            self._data_seen = data_frames
            self._window_updates_left = min(earned, WINDOW_UPDATES_SAVED_MAX)
            if earned == 0:
                return False
        self._window_updates_left -= 1
        return True

"""
Gives memory back to the system after many connections have closed.

glibc keeps what was freed in the middle of its heap for the next allocation. After a burst of connections
that would be most of what they held, for as long as the process lives.

Source: malloc_trim(3), mallopt(3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from sidecar.transports.wheel import TimerWheel

CONNECTION_BYTES = 16_384
"""What a closed connection has freed, at least; about 50 KiB with TLS."""

TRIM_BYTES = 8 << 20
"""Trimming costs about 0.1 ms for each MiB that is given back, so it waits until it is worth a turn."""

TRIM_DELAY_S = 5.0
"""From the moment at which so much is free, so that one trim serves a whole burst."""


def trim_heap() -> None:
    """Return free pages of the heap to the system; nothing happens where the C library cannot (musl)."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class FreedMemory:
    """What closed connections have freed since the heap was trimmed last."""

    __slots__ = ("_bytes", "_is_armed", "_trim", "_wheel")

    def __init__(self, wheel: TimerWheel, trim: Callable[[], None] = trim_heap) -> None:
        """Nothing is freed yet; *trim* is called when it is worth it, from *wheel*."""
        self._wheel = wheel
        self._trim = trim
        self._bytes = 0
        self._is_armed = False

    def add(self, freed_bytes: int, now_s: float) -> None:
        """Note that about *freed_bytes* were freed."""
        self._bytes += freed_bytes
        if self._bytes >= TRIM_BYTES and not self._is_armed:
            self._is_armed = True
            self._wheel.add(now_s + TRIM_DELAY_S, self)

    def on_due(self, now_s: float) -> None:
        """Trim the heap (from the timer wheel)."""
        self._is_armed = False
        self._bytes = 0
        self._trim()

"""
Returns memory to the system after many connections have closed.

glibc keeps memory that was freed in the middle of its heap. After a burst of connections that would be most
of their memory, until the process ends.

Source: malloc_trim(3), mallopt(3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from sidecar.transports.wheel import TimerWheel

CONNECTION_BYTES: Final = 16_384
"""Minimum memory of a connection; about 50 KiB with TLS."""

TRIM_BYTES: Final = 8 << 20
"""Freed memory that triggers a trim; trimming takes about 0.1 ms per MiB."""

TRIM_DELAY_S: Final = 5.0
"""Delay of a trim, so that one trim covers a whole burst."""


def trim_heap() -> None:
    """Return free pages of the heap to the system; does nothing if the C library cannot (musl)."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class FreedMemory:
    """Trims the heap after closed connections have freed enough memory."""

    __slots__ = ("_bytes", "_is_armed", "_trim", "_wheel")

    def __init__(self, wheel: TimerWheel, trim: Callable[[], None] = trim_heap) -> None:
        """Call *trim* from *wheel* when TRIM_BYTES were freed."""
        self._wheel = wheel
        self._trim = trim
        self._bytes = 0
        self._is_armed = False

    def add(self, freed_bytes: int, now_s: float) -> None:
        """Count about *freed_bytes* as freed."""
        self._bytes += freed_bytes
        if self._bytes >= TRIM_BYTES and not self._is_armed:
            self._is_armed = True
            self._wheel.add(now_s + TRIM_DELAY_S, self)

    def on_due(self, now_s: float) -> None:
        """Trim the heap (called by the timer wheel)."""
        self._is_armed = False
        self._bytes = 0
        self._trim()

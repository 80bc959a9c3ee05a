"""
Shares the turns of the event loop among connections.

Reads are handled immediately until TURN_S of the turn has passed. Later reads of the turn are small, are
queued, and are handled in the next turns in order of arrival. Connections whose peers do not read their
answers come last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from sidecar.transports.wheel import Loop

TURN_S: Final = 0.008
"""Time for reads in one turn, and again for the queued input of earlier turns."""

READ_BYTES: Final = 65_536
"""Size of a read. A larger one would not be faster, and would let one connection block the loop."""

LATE_READ_BYTES: Final = 1_024
"""Size of a read that is queued: two or three requests of a proxy, so that the queue takes little memory."""


CROWD: Final = 16
"""Queue length above which connections parse only LATE_READ_BYTES: parsing takes 20 times the memory."""


class QueuedConnection(Protocol):
    """A connection with queued input."""

    def resume(self) -> None:
        """Handle the next part of the input."""


class ReadScheduler:
    """
    Schedules the connections of one event loop.

    `now_s` is the loop's time in the current turn; reads after `ends_s` on `clock` are queued. `read_buffer`
    is the buffer for reads.
    """

    __slots__ = (
        "_is_scheduled",
        "_late_buffer",
        "_loop",
        "_on_wait",
        "_prompt",
        "_slow",
        "_whole_buffer",
        "clock",
        "ends_s",
        "now_s",
        "read_buffer",
    )

    def __init__(self, loop: Loop, clock: Callable[[], float], on_wait: Callable[[], None]) -> None:
        """Call *on_wait* for each read that is queued for lack of time."""
        self._loop = loop
        self._on_wait = on_wait
        self._prompt: deque[QueuedConnection] = deque()
        self._slow: deque[QueuedConnection] = deque()
        self._is_scheduled = False
        # Each read is handled completely before the next one, so all connections share one buffer.
        self._whole_buffer = memoryview(bytearray(READ_BYTES))
        self._late_buffer = self._whole_buffer[:LATE_READ_BYTES]
        self.clock = clock
        self.now_s = float("-inf")
        self.ends_s = 0.0
        self.read_buffer = self._whole_buffer

    @property
    def late_buffer(self) -> memoryview:
        """The buffer for reads that are queued anyway: the first part of `read_buffer`."""
        return self._late_buffer

    @property
    def is_crowded(self) -> bool:
        """Whether more than CROWD connections are queued."""
        return len(self._prompt) + len(self._slow) > CROWD

    def begin(self, now_s: float) -> None:
        """Begin a turn at *now_s* on the loop's clock."""
        self.now_s = now_s
        self.ends_s = self.clock() + TURN_S
        self.read_buffer = self._whole_buffer

    def wait(self, connection: QueuedConnection, *, is_slow: bool, is_late: bool = False) -> None:
        """Resume *connection* in one of the next turns; *is_late* = for lack of time in this turn."""
        (self._slow if is_slow else self._prompt).append(connection)
        if is_late:
            self.read_buffer = self._late_buffer
            self._on_wait()
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Resume queued connections for TURN_S, but at least one of each queue."""
        self._is_scheduled = False
        self.begin(self._loop.time())
        for queue in (self._prompt, self._slow):
            for number in range(len(queue)):
                if number and self.clock() >= self.ends_s:
                    break
                queue.popleft().resume()
        if (self._prompt or self._slow) and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._serve)

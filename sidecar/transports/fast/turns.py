"""
Shares the turns of the event loop among connections, however many there are.

Reads are handled as they come until they have taken their time of a turn. What is read later in that turn
waits, a little of each connection, and is handled in the next turns, in the order in which it came.
Connections whose peers do not take their answers wait behind all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from sidecar.transports.wheel import Loop

TURN_S = 0.008
"""How long reads may take in one turn, and again what waits from the turn before."""

READ_BYTES = 65_536
"""One read of a connection. More would be faster by nothing and let one connection hold the loop."""

LATE_READ_BYTES = 1_024
"""One read that has to wait: two or three requests of a proxy. So what waits takes little memory."""


CROWD = 16
"""With more connections waiting, each parses little at a time: a parsed request takes 20 times the memory."""


class Waiting(Protocol):
    """A connection with something to handle."""

    def resume(self) -> None:
        """Handle the next part of it."""


class Turns:
    """
    The turns of one event loop, as its connections share them.

    `now_s` is the loop's time in the current turn; reads that begin after `ends_s` on `clock` wait.
    `read_buffer` is where to read into.
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
        """Nothing waits; *on_wait* is called for each read that has to."""
        self._loop = loop
        self._on_wait = on_wait
        self._prompt: deque[Waiting] = deque()
        self._slow: deque[Waiting] = deque()
        self._is_scheduled = False
        # Reads are handled to the end before the next one starts, so one buffer serves all.
        self._whole_buffer = memoryview(bytearray(READ_BYTES))
        self._late_buffer = self._whole_buffer[:LATE_READ_BYTES]
        self.clock = clock
        self.now_s = float("-inf")
        self.ends_s = 0.0
        self.read_buffer = self._whole_buffer

    @property
    def late_buffer(self) -> memoryview:
        """Where to read what has to wait anyway; the first part of `read_buffer`."""
        return self._late_buffer

    @property
    def is_crowded(self) -> bool:
        """Whether so many connections wait that each is to have only `LATE_READ_BYTES` parsed in its turn."""
        return len(self._prompt) + len(self._slow) > CROWD

    def begin(self, now_s: float) -> None:
        """A turn begins, at *now_s* on the loop's clock."""
        self.now_s = now_s
        self.ends_s = self.clock() + TURN_S
        self.read_buffer = self._whole_buffer

    def wait(self, connection: Waiting, *, is_slow: bool, is_late: bool = False) -> None:
        """Have *connection* resumed in one of the next turns; *is_late* = for want of time in this one."""
        (self._slow if is_slow else self._prompt).append(connection)
        if is_late:
            self.read_buffer = self._late_buffer
            self._on_wait()
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Resume connections that wait, for the time of a turn, but at least one of each kind."""
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

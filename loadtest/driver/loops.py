"""
The loop of one driver process: sends calls on schedule over its connections, and reads the answers.

In an open loop a call leaves when it is due, whatever the server does; if every connection is full it waits
here, and the wait counts. In a closed loop every connection is kept full. The loop uses `select`, whose
resolution is a microsecond; timers of event loops have a millisecond.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from loadtest.driver.connection import Call, Connection

RECONNECT_NS = 20_000_000
WATCH_NS = 250_000_000
IDLE_S = 0.05
_NEVER = 2**62

Open = Callable[[], Connection]


class Load(Protocol):
    """What is sent, and what becomes of the answers; plain methods, because there are many calls."""

    def next_call(self, now_ns: int) -> tuple[int, int]:
        """Return the number of the next message, and a tag that comes back with the answer."""

    def ended(self, call: Call, message: bytes | None, read_ns: int) -> None:
        """Handle the end of *call*; *message* None = no answer or a gRPC error."""

    def withdrawn(self, call: Call) -> None:
        """Handle that the server refused *call* unhandled: another one is sent in its place."""

    def lagged(self, due_ns: int, lag_ns: int) -> None:
        """Handle a call that the loop took up *lag_ns* after it was due."""

    def tick(self, now_ns: int) -> None:
        """Do what has to be done several times a second."""


@dataclass(frozen=True, slots=True)
class Limits:
    """
    When the loop ends and gives up.

    In a closed loop it starts `calls` calls, and none after `seconds`. A call without an answer for
    `answer_timeout_s` is lost, together with its connection.
    """

    answer_timeout_s: float = 5.0
    calls: int = _NEVER
    seconds: float = 1e9


class Loop:
    """Runs a load over the connections that *openings* make, one each."""

    def __init__(
        self, openings: Sequence[Open], load: Load, clock_ns: Callable[[], int], limits: Limits
    ) -> None:
        """Open all connections."""
        self._load = load
        self._clock_ns = clock_ns
        self._limits = limits
        self._timeout_ns = int(limits.answer_timeout_s * 1e9)
        self._openings = openings
        self._connections = [opening() for opening in openings]
        self._reopened: dict[int, Future[Connection]] = {}
        self._retry_ns: dict[int, int] = {}
        self._retiring: list[Connection] = []
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="connect")
        self._waiting: deque[int] = deque()
        self._turn = 0
        self._by_fd: dict[int, Connection] = {}
        self._watched_ns = 0
        self.reconnects = 0
        self._register()

    def run_open(self, due_times_ns: Iterator[int], start_ns: int) -> None:
        """Send one call at each of *due_times_ns* after *start_ns*; return when all have ended."""
        next_ns = start_ns + next(due_times_ns, _NEVER)
        waiting, lagged = self._waiting, self._load.lagged
        while next_ns < _NEVER or waiting or self._is_busy():
            now_ns = self._clock_ns()
            while next_ns <= now_ns:
                waiting.append(next_ns)
                lagged(next_ns, now_ns - next_ns)
                next_ns = start_ns + next(due_times_ns, _NEVER)
            if waiting:
                self._send_waiting(now_ns)
            self._wait(max(0.0, min(IDLE_S, (next_ns - self._clock_ns()) / 1e9)))

    def run_closed(self, start_ns: int) -> None:
        """Keep every connection full until the limits are reached; return when all calls have ended."""
        left, end_ns = self._limits.calls, start_ns + int(self._limits.seconds * 1e9)
        while (left and self._clock_ns() < end_ns) or self._is_busy() or self._waiting:
            now_ns = self._clock_ns()
            if self._waiting:
                self._send_waiting(now_ns)
            if left and now_ns < end_ns:
                for connection in self._connections:
                    room = min(connection.room, left)
                    if room > 0:
                        self._send(connection, [now_ns] * room, now_ns)
                        left -= room
            self._wait(IDLE_S)

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._connections, *self._retiring):
            connection.close()
        self._threads.shutdown()
        for future in self._reopened.values():
            if future.exception() is None:
                future.result().close()

    def _is_busy(self) -> bool:
        return any(connection.in_flight for connection in self._by_fd.values())

    def _send_waiting(self, now_ns: int) -> None:
        """Spread the waiting calls over the connections in turn; give up those that waited too long."""
        waiting, connections = self._waiting, self._connections
        while waiting and now_ns - waiting[0] > self._timeout_ns:
            due_ns = waiting.popleft()
            number, tag = self._load.next_call(now_ns)
            self._load.ended(Call(due_ns, now_ns, number, tag), None, now_ns)
        for step in range(len(connections)):
            if not waiting:
                break
            connection = connections[(self._turn + step) % len(connections)]
            count = min(connection.room, -(-len(waiting) // (len(connections) - step)))
            if count > 0:
                self._send(connection, [waiting.popleft() for _ in range(count)], now_ns)
        self._turn += 1

    def _send(self, connection: Connection, due_times_ns: Sequence[int], now_ns: int) -> None:
        next_call, target = self._load.next_call, connection.target
        connection.send([Call(due_ns, now_ns, *next_call(now_ns), target) for due_ns in due_times_ns])

    def _wait(self, seconds: float) -> None:
        """Wait for answers for at most *seconds*, and handle them."""
        if any(connection.is_closed for connection in self._by_fd.values()):  # by a failed sending
            self._watch(self._clock_ns())
        by_fd = self._by_fd
        unsent = [fd for fd, connection in by_fd.items() if connection.unsent]
        readable, writable, _ = select.select(by_fd, unsent, (), seconds)
        for fd in writable:
            by_fd[fd].flush()
        now_ns, ended = self._clock_ns(), self._load.ended
        is_changed = now_ns - self._watched_ns > WATCH_NS or bool(self._retry_ns or self._reopened)
        for fd in readable:
            connection = by_fd[fd]
            for call, message in connection.read():
                ended(call, message, now_ns)
            is_changed = is_changed or connection.is_draining or bool(connection.lost)
        if is_changed:
            self._watch(now_ns)

    def _watch(self, now_ns: int) -> None:
        """Handle lost calls, connections that hang, and connections to be opened again."""
        self._watched_ns = now_ns
        self._load.tick(now_ns)
        for connection in self._by_fd.values():
            if connection.oldest_ns and now_ns - connection.oldest_ns > self._timeout_ns:
                connection.close()
            for call in connection.lost:
                self._load.ended(call, None, now_ns)
            connection.lost.clear()
            for call in reversed(connection.refused):
                self._load.withdrawn(call)
                self._waiting.appendleft(call.due_ns)
            connection.refused.clear()
        for old in self._retiring:
            if not old.in_flight:
                old.close()
        self._retiring = [old for old in self._retiring if not old.is_closed]
        for slot, connection in enumerate(self._connections):
            if connection.is_draining:
                self._reopen(slot, connection, now_ns)
        self._register()

    def _reopen(self, slot: int, connection: Connection, now_ns: int) -> None:
        """Replace a connection that takes no calls; the old one ends its calls in the background."""
        future = self._reopened.get(slot)
        if future is None:
            if now_ns >= self._retry_ns.get(slot, 0):
                self._reopened[slot] = self._threads.submit(self._openings[slot])
        elif future.done():
            del self._reopened[slot]
            try:
                self._connections[slot] = future.result()
            except OSError:
                self._retry_ns[slot] = now_ns + RECONNECT_NS
                return
            self._retry_ns.pop(slot, None)
            self.reconnects += 1
            if connection.is_closed or not connection.in_flight:
                connection.close()
            else:
                self._retiring.append(connection)

    def _register(self) -> None:
        self._by_fd = {
            connection.socket.fileno(): connection
            for connection in (*self._connections, *self._retiring)
            if not connection.is_closed
        }

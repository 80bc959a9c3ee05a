"""Load generators: callers that keep calls in flight to a sidecar, and reconnect after it was killed."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import NamedTuple, Protocol

from sidecar.verify.check_link import CheckLink, connect

CONNECT_TIMEOUT_S = 2.0
RECONNECT_AFTER_S = 0.02
WATCH_INTERVAL_S = 0.5
ANSWER_TIMEOUT_S = 5.0
"""Far above every timeout of a sidecar: a connection with calls in flight and no byte for this long hangs."""
DRAIN_TIMEOUT_S = 6.0
PACE_INTERVAL_S = 0.002
PACE_BACKLOG_S = 0.1
"""The most that a delayed paced caller catches up on, to avoid a burst."""


class Call(NamedTuple):
    """The next call: its message, and the tag that `ended` gets."""

    message: bytes
    tag: int


class CallHandler(Protocol):
    """Supplies calls and receives their answers; plain methods, because there are many calls."""

    def next_call(self, caller: int) -> Call | None:
        """The next call of caller number *caller*; None = no call now."""

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Handle the end of a call; *message* b'' = no answer."""


class Caller:
    """
    Keeps `depth` calls in flight on one connection to one sidecar, and reconnects when it is lost.

    `hung` counts calls that were aborted because no byte was received for `ANSWER_TIMEOUT_S`.
    """

    def __init__(
        self, number: int, target: str, handler: CallHandler, depth: int, calls_per_s: float | None = None
    ) -> None:
        """Call *target*; *calls_per_s* None = as fast as it answers."""
        self.number = number
        self.target = target
        self.hung = 0
        self.calls_per_s = calls_per_s
        self._handler = handler
        self._depth = depth
        self._is_running = False
        self._link = CheckLink("sidecar", self._ended, self._closed)
        self._idle = asyncio.Event()
        self._lost: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_filling = False
        self._budget = 0.0
        self._paced_ns = 0

    @property
    def in_flight(self) -> int:
        """The number of unanswered calls."""
        return self._link.in_flight

    def start(self) -> None:
        """Start calling."""
        self._is_running = True
        self._paced_ns = monotonic_ns()
        self._task = asyncio.get_running_loop().create_task(self._reconnect())

    async def stop(self) -> None:
        """Start no more calls, wait for outstanding answers, and close."""
        self._is_running = False
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while self._link.in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            self.hung += self._link.in_flight
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._link.abort()

    def pace(self, calls_per_s: float) -> None:
        """Limit the rate to *calls_per_s* from now on, starting within `WATCH_INTERVAL_S`."""
        self.calls_per_s, self._budget, self._paced_ns = calls_per_s, 0.0, monotonic_ns()

    def wake(self) -> None:
        """Start calls again, after the handler had none."""
        self.fill()
        self._link.flush()

    def fill(self) -> None:
        """Start calls until `depth` are in flight."""
        if self._is_filling:  # a call ended while `fill` runs: its loop starts the next one
            return
        self._is_filling = True
        link, handler, number = self._link, self._handler, self.number
        try:
            while self._is_running and link.has_room and link.in_flight < self._depth and self._may_call():
                call = handler.next_call(number)
                if call is None:
                    break
                link.call(call.message, call.tag)
                self._budget -= 1
        finally:
            self._is_filling = False

    def _may_call(self) -> bool:
        return self.calls_per_s is None or self._budget >= 1

    def _ended(self, tag: int, message: bytes, sent_ns: int) -> None:
        self._handler.ended(self.number, tag, message, sent_ns)
        if self._link.is_open:
            self.fill()
        if not self._link.in_flight:
            self._idle.set()
            if not self._link.is_open:
                self._closed()

    def _closed(self) -> None:
        """Have the connection replaced at once."""
        self._idle.set()
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    async def _reconnect(self) -> None:
        while self._is_running:
            self._link = CheckLink("sidecar", self._ended, self._closed)
            try:
                await connect(self._link, self.target, CONNECT_TIMEOUT_S)
            except OSError:
                await asyncio.sleep(RECONNECT_AFTER_S)
                continue
            await self._use()
            await asyncio.sleep(RECONNECT_AFTER_S)

    async def _use(self) -> None:
        """Call on the open connection until it closes or hangs."""
        link = self._link
        self._lost = asyncio.get_running_loop().create_future()
        watched_ns = monotonic_ns()
        while self._is_running and (link.is_open or link.in_flight):
            if self.calls_per_s is not None:
                self.earned(monotonic_ns())
            self.fill()
            link.flush()
            now_ns = monotonic_ns()
            if now_ns - watched_ns >= WATCH_INTERVAL_S * 1e9:
                watched_ns = now_ns
                self._watch(link)
            interval_s = WATCH_INTERVAL_S if self.calls_per_s is None else PACE_INTERVAL_S
            await asyncio.wait([self._lost], timeout=interval_s)
        if self._is_running:
            link.abort()

    def earned(self, now_ns: int) -> int:
        """Update and return the number of calls that a paced caller may start at *now_ns*."""
        assert self.calls_per_s is not None
        earned = self.calls_per_s * (now_ns - self._paced_ns) / 1e9
        self._budget = min(self._budget + earned, self.calls_per_s * PACE_BACKLOG_S + 1)
        self._paced_ns = now_ns
        return int(self._budget)

    def _watch(self, link: CheckLink) -> None:
        if link.in_flight and monotonic_ns() - link.received_ns > ANSWER_TIMEOUT_S * 1e9:
            self.hung += link.in_flight
            link.abort()


async def ask(target: str, message: bytes, timeout_s: float) -> bytes:
    """
    Make one call on a new connection; return the answer's message, b'' = the call failed.

    Raises:
        OSError: *target* cannot be reached, or did not answer in time.
    """
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def ended(tag: int, message: bytes, sent_ns: int) -> None:
        if not answer.done():
            answer.set_result(message)

    link = CheckLink("sidecar", ended, lambda: None)
    try:
        await connect(link, target, timeout_s)
        link.call(message, 0)
        link.flush()
        async with asyncio.timeout(timeout_s):
            return await answer
    finally:
        link.abort()

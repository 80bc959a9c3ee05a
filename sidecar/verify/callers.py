"""Load: callers that keep calls under way to a sidecar, through its death and return."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import NamedTuple, Protocol

from sidecar.verify.check_link import CheckLink, connect

CONNECT_TIMEOUT_S = 2.0
RECONNECT_AFTER_S = 0.02
WATCH_INTERVAL_S = 0.5
ANSWER_TIMEOUT_S = 5.0
"""Far above every bound of a sidecar: a connection that is silent for so long while calls wait is hung."""
DRAIN_TIMEOUT_S = 6.0
PACE_INTERVAL_S = 0.002
PACE_BACKLOG_S = 0.1
"""A paced caller that was held up makes good no more than that, instead of a flood."""


class Call(NamedTuple):
    """What to ask next: the message, and the tag by which its end is told."""

    message: bytes
    tag: int


class Listener(Protocol):
    """Who is told of calls; a plain call for each, as there are many."""

    def next_call(self, caller: int) -> Call | None:
        """What caller number *caller* asks next; None = nothing now."""

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """A call ended: with an answer, or b'' = none came."""


class Caller:
    """
    Keeps `depth` calls under way on one connection to one sidecar, and connects again when it is lost.

    `hung` counts calls that were given up because nothing came for `ANSWER_TIMEOUT_S`.
    """

    def __init__(
        self, number: int, target: str, listener: Listener, depth: int, calls_per_s: float | None = None
    ) -> None:
        """Call *target*; *calls_per_s* None = as fast as answers come."""
        self.number = number
        self.target = target
        self.hung = 0
        self.calls_per_s = calls_per_s
        self._listener = listener
        self._depth = depth
        self._is_running = False
        self._link = CheckLink("sidecar", self._ended, self._closed)
        self._idle = asyncio.Event()
        self._over: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_filling = False
        self._budget = 0.0
        self._paced_ns = 0

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._link.in_flight

    def start(self) -> None:
        """Begin to call."""
        self._is_running = True
        self._paced_ns = monotonic_ns()
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    async def stop(self) -> None:
        """Begin no more calls, wait for the answers of those under way, and close."""
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
        """Begin no more than so many a second from now on; the first ones `WATCH_INTERVAL_S` later."""
        self.calls_per_s, self._budget, self._paced_ns = calls_per_s, 0.0, monotonic_ns()

    def wake(self) -> None:
        """The listener has calls again, after it had none."""
        self.fill()
        self._link.flush()

    def fill(self) -> None:
        """Begin as many calls as may be under way."""
        if self._is_filling:  # an end told while we fill is made good by the loop that runs
            return
        self._is_filling = True
        link, listener, number = self._link, self._listener, self.number
        try:
            while self._is_running and link.has_room and link.in_flight < self._depth and self._may_call():
                call = listener.next_call(number)
                if call is None:
                    break
                link.call(call.message, call.tag)
                self._budget -= 1
        finally:
            self._is_filling = False

    def _may_call(self) -> bool:
        return self.calls_per_s is None or self._budget >= 1

    def _ended(self, tag: int, message: bytes, sent_ns: int) -> None:
        self._listener.ended(self.number, tag, message, sent_ns)
        if self._link.is_open:
            self.fill()
        if not self._link.in_flight:
            self._idle.set()
            if not self._link.is_open:
                self._closed()

    def _closed(self) -> None:
        """The connection is of no more use: have it replaced at once."""
        self._idle.set()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    async def _keep_connected(self) -> None:
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
        """Call on the open connection until it ends or is silent for too long."""
        link = self._link
        self._over = asyncio.get_running_loop().create_future()
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
            await asyncio.wait([self._over], timeout=interval_s)
        if self._is_running:
            link.abort()

    def earned(self, now_ns: int) -> int:
        """The calls that a paced caller may begin at *now_ns*, those that time has brought included."""
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
    One call on a connection of its own; the answer's message, b'' = the sidecar gave none.

    Raises:
        OSError: it cannot be reached, or did not answer in time.
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

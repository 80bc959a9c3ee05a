"""
Keeps work that can wait from holding up the event loop that decisions are made on.

A coroutine runs from one `await` to the next in one go; such a step is what decisions wait for. Here steps
take turns: one in each turn of the loop, so that decisions which have come meanwhile are made in between.
While decisions do come, steps together take no more than a share of the time, beyond a small burst.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from time import perf_counter, thread_time
from typing import Any, Generic, TypeVar

from sidecar.app.admin_http import AsgiApp, Receive, Scope, Send

Result = TypeVar("Result")

SHARE = 0.1
"""Of the loop's time, what steps may take while decisions come."""
BURST_S = 0.01
"""Time that steps may take beyond their share at once: a few calls in a row are not slowed down."""


class LoopShare:
    """The share of the event loop that some coroutines have together."""

    def __init__(
        self,
        count_others: Callable[[], int],
        share: float = SHARE,
        burst_s: float = BURST_S,
        clock_s: Callable[[], float] = perf_counter,
        spent_s: Callable[[], float] = thread_time,
    ) -> None:
        """
        Give at most *share* (0 ... 1) of the time, and *burst_s* in advance, while others want the loop.

        Args:
            count_others: how often others have had the loop so far; no more since the last step = nobody
                is held up, and the next step need not wait.
            share: of the time.
            burst_s: what steps may take at once.
            clock_s: the time.
            spent_s: the processor time of this thread: being kept waiting by other programs costs nothing.
        """
        self._count_others = count_others
        self._others = count_others()
        self._share = share
        self._burst_s = burst_s
        self._clock_s = clock_s
        self.spent_s = spent_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False
        self._due_s = 0.0  # when what was taken is paid for, as GCRA's theoretical arrival time

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do *work*, in turns."""
        return await _Stepped(work, self)

    def turn(self) -> Generator[Any, None, None]:
        """Wait for the next turn; whoever got it ends it with `end`."""
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            yield from turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.end(0.0)  # it was given all the same
            raise

    def end(self, spent_s: float) -> None:
        """A turn is over that took *spent_s*: the next one comes when the loop has seen to others."""
        now_s, others = self._clock_s(), self._count_others()
        self._due_s = max(self._due_s, now_s) + spent_s / self._share
        wait_s = self._due_s - now_s - self._burst_s
        is_alone, self._others = others == self._others, others
        loop = asyncio.get_running_loop()
        if is_alone or wait_s <= 0:
            self._due_s = min(self._due_s, now_s + self._burst_s)
            loop.call_soon(self._next)
        else:
            loop.call_later(wait_s, self._next)

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False


def in_turns(app: AsgiApp, share: LoopShare) -> AsgiApp:
    """*app*, with every call of it in turns of *share*."""

    async def taking_turns(scope: Scope, receive: Receive, send: Send) -> None:
        await share.run(app(scope, receive, send))

    return taking_turns


class _Stepped(Generic[Result]):
    """Awaits a coroutine step by step, each in a turn."""

    __slots__ = ("_share", "_work")

    def __init__(self, work: Coroutine[Any, Any, Result], share: LoopShare) -> None:
        self._work = work
        self._share = share

    def __await__(self) -> Generator[Any, None, Result]:
        step: Callable[[], Any] = partial(self._work.send, None)
        while True:
            spent: Callable[[float], None] = self._share.end
            try:
                yield from self._share.turn()
            except BaseException as error:  # cancelled while it waited: its end needs no turn
                step, spent = partial(self._work.throw, error), _ignore
            started_s = self._share.spent_s()
            try:
                awaited = step()
            except StopIteration as end:
                result: Result = end.value
                return result
            finally:
                spent(self._share.spent_s() - started_s)
            try:
                yield awaited
            except BaseException as error:  # what it awaited failed, or it was cancelled
                step = partial(self._work.throw, error)
            else:
                step = partial(self._work.send, None)


def _ignore(spent_s: float) -> None:
    """No turn was taken."""

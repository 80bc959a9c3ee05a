"""Waiting, with a deadline: for a coroutine, or for a fact that no event announces."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

Value = TypeVar("Value")

PATIENCE_S = 60.0
"""How long a test waits for what it expects; generous, because other programs may keep every core busy."""
TICK_S, TICK_S_MAX = 0.002, 0.05
"""The first pause between two questions, and the longest: what asks all the time slows what it waits for."""
TURNS_AT_ONCE = 100


def eventually(condition: Callable[[], Value], timeout_s: float = PATIENCE_S, what: str = "") -> Value:
    """
    Ask *condition* again and again until it returns something true, and return that.

    Raises:
        AssertionError: it did not within *timeout_s*; names *what*, else the condition.
    """
    never = threading.Event()
    deadline_s = time.monotonic() + timeout_s
    tick_s = TICK_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        never.wait(tick_s)
        tick_s = min(TICK_S_MAX, 1.3 * tick_s)


async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """
    Let the event loop turn until *condition*, which may be a coroutine function, returns something true.

    After `TURNS_AT_ONCE` turns it pauses between them: others may need the core to make it true.

    Raises:
        TimeoutError: it did not within *timeout_s*.
    """
    never, turns = asyncio.Event(), 0
    async with asyncio.timeout(timeout_s):
        while not (await value if inspect.isawaitable(value := condition()) else value):
            turns += 1
            if turns < TURNS_AT_ONCE:
                await asyncio.sleep(0)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(never.wait(), TICK_S)


def run(
    coroutine: Coroutine[Any, Any, Value], patience_s: float = PATIENCE_S, *, plain: bool = False
) -> Value:
    """Run *coroutine* on a fresh uvloop (*plain*: asyncio's own loop), with a deadline and no task left."""

    async def bounded() -> Value:
        result = await asyncio.wait_for(coroutine, patience_s)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=asyncio.new_event_loop if plain else uvloop.new_event_loop) as runner:
        return runner.run(bounded())

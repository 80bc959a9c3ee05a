"""Work that takes turns of the event loop: one step at a time, no more than its share, and nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from itertools import count, pairwise
from typing import Any, TypeVar

import pytest

from sidecar.app.loop_share import LoopShare

Result = TypeVar("Result")


class Clock:
    """Seconds that move only when a step says so."""

    def __init__(self) -> None:
        """Begin anywhere."""
        self.now_s = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


class Pause:
    """Awaits one turn of the loop, as a bare yield does."""

    def __await__(self) -> Generator[None, None, None]:
        """Yield once."""
        yield


def never() -> int:
    """Nobody else wants the loop."""
    return 0


def in_loop(scene: Coroutine[Any, Any, Result]) -> Result:
    """Run *scene* within a bound."""

    async def bounded() -> Result:
        async with asyncio.timeout(30):
            return await scene

    return asyncio.run(bounded())


def test_run__gives_the_result_and_the_error() -> None:
    """What the work returns or raises comes out, whatever it awaited on the way."""

    async def said(word: str) -> str:
        await Pause()
        return word

    async def works() -> str:
        await Pause()
        assert await asyncio.gather(said("a"), said("b")) == ["a", "b"]
        return "done"

    async def fails() -> None:
        await Pause()
        raise LookupError("nothing there")

    async def scene() -> None:
        share = LoopShare(never)
        assert await share.run(works()) == "done"
        with pytest.raises(LookupError, match="nothing there"):
            await share.run(fails())
        assert await share.run(works()) == "done"

    in_loop(scene())


def test_run__what_is_awaited_may_fail() -> None:
    """An error of what the work awaits is raised inside it, where it can be handled."""

    async def handles() -> str:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(waiting.set_exception, LookupError("late"))
        try:
            await waiting
        except LookupError as error:
            return str(error)
        return "not raised"

    assert in_loop(LoopShare(never).run(handles())) == "late"


def test_turns__others_come_in_between() -> None:
    """Between two steps, whatever else became ready gets the loop: nobody waits for more than one step."""
    order: list[str] = []

    async def steps(name: str) -> None:
        for _ in range(3):
            order.append(name)
            await Pause()

    async def decides() -> None:
        for _ in range(30):
            order.append("-")
            await asyncio.sleep(0)

    async def scene() -> None:
        share = LoopShare(never, share=1.0, burst_s=1e9)
        await asyncio.gather(decides(), *(share.run(steps(name)) for name in "abc"))

    in_loop(scene())
    told = "".join(order)
    assert sorted(told.replace("-", "")) == list("aaabbbccc")
    assert "-" in told
    for first, second in pairwise(told):
        assert "-" in (first, second), f"two steps in a row: {told}"


def delays_of_busy_work(count_others: Callable[[], int]) -> list[float]:
    """What work of four seconds, one in each step, has to wait with a share of a half and a burst of 3 s."""
    clock, delays = Clock(), []

    async def busy() -> None:
        for _ in range(4):
            clock.now_s += 1.0
            await Pause()

    async def scene() -> None:
        loop = asyncio.get_running_loop()

        def call_later(delay_s: float, callback: Any, *arguments: Any) -> asyncio.Handle:
            delays.append(delay_s)
            clock.now_s += delay_s
            return loop.call_soon(callback, *arguments)

        loop.call_later, kept = call_later, loop.call_later  # type: ignore[method-assign, assignment]
        try:
            await LoopShare(count_others, 0.5, 3.0, clock, clock).run(busy())
        finally:
            loop.call_later = kept  # type: ignore[method-assign]

    asyncio.run(scene())
    return delays


def test_share__makes_the_rest_wait_while_others_come() -> None:
    """
    After the burst, a step waits until what was taken is paid for: its time divided by the share.

    Each second costs two here, the burst covers the first two steps, and the last one takes no time.
    """
    assert delays_of_busy_work(count().__next__) == [1.0, 1.0]


def test_share__costs_nothing_while_nobody_comes() -> None:
    """Without others there is nobody to make way for."""
    assert delays_of_busy_work(never) == []


def test_cancel__while_it_waits_for_its_turn() -> None:
    """Cancelled work ends, with its own clean-up, and the others go on."""
    cleaned: list[str] = []

    async def long(name: str) -> str:
        try:
            for _ in range(20):
                await Pause()
        finally:
            cleaned.append(name)
        return name

    async def scene() -> None:
        share = LoopShare(never, share=1.0, burst_s=1e9)
        tasks = [asyncio.create_task(share.run(long(name))) for name in "abcd"]
        for _ in range(30):
            await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[3].cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in ended] == [str, asyncio.CancelledError, str, asyncio.CancelledError]
        assert await share.run(long("e")) == "e"

    in_loop(scene())
    assert sorted(cleaned) == list("abcde")


def test_cancel__at_every_moment() -> None:
    """However many turns of the loop go by before, a cancellation never keeps the turns from going on."""

    async def quick() -> str:
        await Pause()
        await Pause()
        return "done"

    async def scene() -> None:
        share = LoopShare(never, share=1.0, burst_s=1e9)
        for turns in range(1, 12):
            others = [asyncio.create_task(share.run(quick())) for _ in range(3)]
            doomed = asyncio.create_task(share.run(quick()))
            for _ in range(turns):
                await asyncio.sleep(0)
            doomed.cancel()
            assert await asyncio.gather(*others) == ["done"] * 3
            with pytest.raises((asyncio.CancelledError, AssertionError)):
                assert await doomed != "done"

    in_loop(scene())

"""The timer wheel: due in time, once, and never holding more than what waits."""

from __future__ import annotations

from random import Random

import pytest

from sidecar.transports.wheel import TICKS_PER_S, TimerWheel
from tests.unit.transports.rig import ManualLoop


class Item:
    """Remembers when it was due."""

    def __init__(self) -> None:
        """Not yet."""
        self.due_s: list[float] = []

    def on_due(self, now_s: float) -> None:
        """See `Due`."""
        self.due_s.append(now_s)


@pytest.fixture(name="loop")
def fixture_loop() -> ManualLoop:
    """A loop turned by hand."""
    return ManualLoop()


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.01, 0.0999, 0.25, 3.0, 86_400.0])
def test_wheel__an_item_is_due_within_a_tick(loop: ManualLoop, delay_s: float) -> None:
    """Never before its time, at most one tick after it, and once."""
    wheel, item = TimerWheel(loop), Item()
    start_s = loop.time()
    wheel.add(start_s + delay_s, item)
    loop.advance(delay_s + 1)
    (due_s,) = item.due_s
    assert delay_s <= due_s - start_s <= delay_s + 1 / TICKS_PER_S + 1e-9
    assert len(wheel) == 0


def test_wheel__random_items_are_all_due_in_order(loop: ManualLoop) -> None:
    """Many items, added in any order and some dropped, fire as a list sorted by time would."""
    random = Random(7)
    wheel, start_s = TimerWheel(loop), loop.time()
    items = [(random.uniform(0, 5), Item()) for _ in range(500)]
    ticks = [wheel.add(start_s + delay_s, item) for delay_s, item in items]
    for tick, (_, item) in list(zip(ticks, items, strict=True))[::3]:
        wheel.discard(tick, item)
    loop.advance(6)
    for index, (delay_s, item) in enumerate(items):
        if index % 3 == 0:
            assert item.due_s == []
        else:
            (due_s,) = item.due_s
            assert delay_s <= due_s - start_s <= delay_s + 0.011


def test_wheel__one_timer_serves_all(loop: ManualLoop) -> None:
    """However many items wait, the event loop has one timer; with none waiting it has none."""
    wheel = TimerWheel(loop)
    for index in range(100):
        wheel.add(loop.time() + 10 - index / 20, Item())
    assert loop.timers == 1
    loop.advance(20)
    assert loop.timers == 0


def test_wheel__an_earlier_item_moves_the_timer(loop: ManualLoop) -> None:
    """A short wait that comes after a long one is not held up by it."""
    wheel, late, early = TimerWheel(loop), Item(), Item()
    wheel.add(loop.time() + 100, late)
    wheel.add(loop.time() + 1, early)
    loop.advance(2)
    assert (len(early.due_s), len(late.due_s)) == (1, 0)


def test_wheel__discarding_leaves_nothing(loop: ManualLoop) -> None:
    """A million calls that end long before their deadlines leave nothing behind, whatever these were."""
    wheel, item = TimerWheel(loop), Item()
    for index in range(10_000):
        wheel.discard(wheel.add(loop.time() + 0.2 + index / 50, item), item)
        loop.now_s += 0.0001
    assert len(wheel) == 0
    assert len(wheel.ticks) <= 64 + 2
    loop.advance(300)
    assert item.due_s == []
    wheel.discard(12, item)


def test_wheel__an_item_may_add_itself_again(loop: ManualLoop) -> None:
    """Periodic looks are made of single waits."""
    wheel = TimerWheel(loop)

    class Again(Item):
        def on_due(self, now_s: float) -> None:
            super().on_due(now_s)
            wheel.add(now_s + 0.25, self)

    item = Again()
    wheel.add(loop.time() + 0.25, item)
    loop.advance(10)
    assert 37 <= len(item.due_s) <= 40


def test_wheel__one_failing_item_does_not_stop_the_rest(loop: ManualLoop) -> None:
    """The wheel turns on, whatever an item does; those due with it are not lost."""
    wheel, items = TimerWheel(loop), [Item() for _ in range(20)]

    class Failing(Item):
        def on_due(self, now_s: float) -> None:
            raise RuntimeError("once")

    for item in (*items[:9], Failing(), *items[9:]):
        wheel.add(loop.time() + 1, item)
    with pytest.raises(RuntimeError, match="once"):
        loop.advance(1.5)
    loop.advance(1)
    assert [len(item.due_s) for item in items] == [1] * 20


def test_wheel__an_item_may_drop_one_that_is_due_with_it(loop: ManualLoop) -> None:
    """What was dropped is not called, even when its turn was next: of two that drop each other one runs."""
    wheel = TimerWheel(loop)
    ran: list[Item] = []

    class Dropping(Item):
        other: Item
        tick: int

        def on_due(self, now_s: float) -> None:
            ran.append(self)
            wheel.discard(self.tick, self.other)

    first, second = Dropping(), Dropping()
    first.other, second.other = second, first
    for item in (first, second):
        item.tick = wheel.add(loop.time() + 1, item)
    loop.advance(2)
    assert len(ran) == 1
    assert len(wheel) == 0


def test_wheel__close_forgets_all(loop: ManualLoop) -> None:
    """A drained server leaves no timer in the loop."""
    wheel, item = TimerWheel(loop), Item()
    wheel.add(loop.time() + 1, item)
    wheel.close()
    wheel.close()
    assert (len(wheel), loop.timers) == (0, 0)
    loop.advance(2)
    assert item.due_s == []

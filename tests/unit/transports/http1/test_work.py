"""Work in turn by source, at a pace."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidecar.transports.http1 import work
from sidecar.transports.http1.work import OWN_LOOP, FairQueue, Pace, WorkQueue
from tests.unit.transports.rig import ManualLoop


class Worker:
    """Does what it is told, and notes it."""

    def __init__(
        self, source: str, name: str, done: list[str], then: Callable[[], None] = lambda: None
    ) -> None:
        """Note *name* in *done*, and do *then*."""
        self.source = source
        self.name = name
        self._done = done
        self.then = then

    def work(self) -> None:
        """Note it."""
        self._done.append(self.name)
        self.then()


class Clock:
    """A clock that work moves."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.now_s = 0.0

    def __call__(self) -> float:
        """What the time is."""
        return self.now_s

    def spend(self, seconds: float) -> Callable[[], None]:
        """Work that takes so long."""

        def work() -> None:
            self.now_s += seconds

        return work


def test_fair_queue__sources_take_turns() -> None:
    """One with many items delays another by no more than one of them."""
    queue: FairQueue[Worker] = FairQueue()
    items = [Worker("a", f"a{n}", []) for n in range(3)] + [Worker("b", f"b{n}", []) for n in range(2)]
    for item in items:
        queue.add(item)
        queue.add(item)  # waits once
    order = [queue.pop().name for _ in items]
    assert order == ["a0", "b0", "a1", "b1", "a2"]
    assert not queue


def test_fair_queue__what_is_discarded_is_gone() -> None:
    """Also the last of its source; another time it is nothing."""
    queue: FairQueue[Worker] = FairQueue()
    item = Worker("a", "a", [])
    queue.discard(item)
    queue.add(item)
    queue.discard(item)
    queue.discard(item)
    assert not queue and list(queue) == []


def test_work_queue__on_its_own_loop_goes_on_in_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn ends when its time is over, and others have theirs."""
    clock, loop, done = Clock(), ManualLoop(), list[str]()
    monkeypatch.setattr(work, "perf_counter", clock)
    queue = WorkQueue(loop, OWN_LOOP)
    for number in range(4):
        queue.add(Worker("a", str(number), done, clock.spend(OWN_LOOP.turn_s / 2)))
    loop.call_soon(done.append, "others")
    loop.turn()
    loop.advance(0)
    assert done == ["others", "0", "1", "2", "3"]


def test_work_queue__beside_decisions_takes_its_share_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """With endless work of 0.1 ms a piece, a share of 5 % is some 500 pieces in a second."""
    clock, loop, done = Clock(), ManualLoop(), list[str]()
    monkeypatch.setattr(work, "perf_counter", clock)
    queue = WorkQueue(loop, Pace(0.000_05, 0.05))
    for number in range(100):
        worker = Worker(str(number), "x", done, clock.spend(0.000_1))
        note = worker.then

        def again(worker: Worker = worker, note: Callable[[], None] = note) -> None:
            note()
            queue.add(worker)

        worker.then = again
        queue.add(worker)
    loop.advance(1)
    assert 450 < len(done) <= 530
    assert clock.now_s < 0.054


def test_work_queue__rests_are_kept_when_the_work_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes one at a time is not let through faster; what is done elsewhere is charged."""
    clock, loop, done = Clock(), ManualLoop(), list[str]()
    monkeypatch.setattr(work, "perf_counter", clock)
    queue = WorkQueue(loop, Pace(0.000_05, 0.05))
    queue.add(Worker("a", "first", done, clock.spend(0.001)))
    loop.advance(0)
    queue.add(Worker("a", "second", done))
    loop.advance(0.018)
    assert done == ["first"]
    loop.advance(0.002)
    assert done == ["first", "second"]
    queue.charge(0.001)
    queue.add(Worker("a", "third", done))
    loop.advance(0.018)
    assert done[-1] == "second"
    loop.advance(0.005)
    assert done[-1] == "third"

"""The embedded store of the rate-limit service: its bound, and what gives way."""

from __future__ import annotations

from sidecar.domain.rate_limits.counters import CountersTaken, CounterTake
from sidecar.stores.embedded_counters import SEARCH_INTERVAL_US, EmbeddedCounterStore
from sidecar.stores.protocols import StoreFault
from tests.building import ManualClock


def take(key: str, hits: int = 1, *, unit_s: int = 60, is_bucket: bool = False) -> CounterTake:
    """Hits from a counter of ten."""
    return CounterTake(key, unit_s, 10, hits, is_bucket=is_bucket)


def is_taken(outcome: CountersTaken | StoreFault) -> bool:
    """Whether the call was answered."""
    return isinstance(outcome, CountersTaken)


def test_store__is_bounded_for_each_domain() -> None:
    """A flood of keys in one domain is refused, changes nothing, and costs other domains nothing."""
    store = EmbeddedCounterStore(ManualClock(), counters_max=3)
    outcomes = [store.take_now("d", [take(str(number))]) for number in range(10_000)]
    assert outcomes.count(StoreFault.OVERLOADED) == 9_997
    assert len(store) == 3
    assert is_taken(store.take_now("d", [take("0")]))  # one that is kept goes on
    assert is_taken(store.take_now("other", [take("0")]))
    assert store.take_now("d", [take("0", 8), take("new")]) is StoreFault.OVERLOADED
    taken = store.take_now("d", [take("0", 0)])
    assert isinstance(taken, CountersTaken)
    assert taken.counted[0].used == 2


def test_store__drops_windows_that_are_over_and_buckets_that_are_full() -> None:
    """Nothing that is in use is dropped."""
    clock = ManualClock(60_000_000 * 1_000_000)
    store = EmbeddedCounterStore(clock, counters_max=3)
    for each in (take("window"), take("bucket", 2, is_bucket=True), take("day", unit_s=86_400)):
        assert is_taken(store.take_now("d", [each]))
    clock.advance(seconds=6)  # half of the bucket's two tokens are back
    assert store.take_now("d", [take("new")]) is StoreFault.OVERLOADED
    clock.advance(seconds=6)
    assert is_taken(store.take_now("d", [take("new")]))
    clock.advance(seconds=60)
    assert is_taken(store.take_now("d", [take("next"), take("more")]))
    taken = store.take_now("d", [take("day", 0, unit_s=86_400)])
    assert isinstance(taken, CountersTaken)
    assert taken.counted[0].used == 1


def test_store__searches_once_a_second() -> None:
    """A flood must not walk over all counters at each call."""
    clock = ManualClock()
    store = EmbeddedCounterStore(clock, counters_max=1)
    store.take_now("d", [take("a", unit_s=1)])
    assert store.take_now("d", [take("b")]) is StoreFault.OVERLOADED
    clock.advance(us=SEARCH_INTERVAL_US - 1)
    assert store.take_now("d", [take("b")]) is StoreFault.OVERLOADED
    clock.advance(us=1)
    assert is_taken(store.take_now("d", [take("b")]))


def test_store__a_peek_needs_no_place() -> None:
    """Looking stores nothing."""
    store = EmbeddedCounterStore(ManualClock(), counters_max=1)
    for number in range(5):
        assert is_taken(store.take_now("d", [take(str(number), 0)]))
    assert len(store) == 0

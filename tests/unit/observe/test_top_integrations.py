"""Metrics of single integrations: bounded, exact in sum, over several workers and their ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain.decisions import Reason
from sidecar.domain.snapshot import CompiledIntegration
from sidecar.observe.integration_rows import RESULTS, ROWS_PER_LISTED, IntegrationRows
from sidecar.observe.metrics import Metrics
from sidecar.observe.rows import OTHER_ROW
from sidecar.observe.shared import WorkerCounts
from sidecar.observe.table import TABLE
from sidecar.observe.top_integrations import (
    ADMITTED,
    BURST,
    DECISIONS,
    FORMER,
    LIMIT,
    LIMITED_SINCE,
    REMAINING,
    SAMPLE_US,
    UNKNOWN,
    USED,
    TopIntegrations,
)
from sidecar.services.decider import Decider
from sidecar.stores.embedded import EmbeddedBucketStore
from tests.building import (
    NOW_US,
    ManualClock,
    make_decider,
    make_integration,
    make_key,
    make_metrics,
    make_policy,
    make_request,
)

IDS = [f"acme-{number}" for number in range(9)]
KEYS = {id: make_key() for id in IDS}
RECORDS = [make_integration(KEYS[id], id=id, rate_limit_rpm=60, burst=3) for id in IDS]


def series(metrics: Metrics, name: str = DECISIONS) -> dict[tuple[str, ...], float]:
    """The samples of one metric by their label values."""
    [family] = [family for family in metrics.collect() if family.name == name.removesuffix("_total")]
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def decisions(metrics: Metrics) -> float:
    """All decisions, by `sidecar_decisions_total`."""
    return sum(series(metrics, "sidecar_decisions_total").values())


class ListedTraffic:
    """Deciders of one integration each request, with metrics that list at most *listed_max*."""

    def __init__(self, metrics: Metrics, listed_max: int = 3) -> None:
        """Count in *metrics*, by a stopped clock."""
        self.clock = ManualClock()
        metrics.top.listed_max = listed_max
        self.decider: Decider = make_decider(
            *RECORDS, metrics=metrics, clock=self.clock, listed_max=listed_max
        )

    def decide(self, id: str, path: str = "/v1/orders/7", times: int = 1) -> None:
        """Decide requests of the integration *id*."""
        for _ in range(times):
            self.decider.decide(make_request(KEYS[id].api_key, path=path), None, lambda *_: None, None)


def listing(clock: ManualClock, metrics: Metrics | None = None) -> Metrics:
    """Metrics whose integrations are listed by *clock*."""
    metrics = make_metrics() if metrics is None else metrics
    metrics.top = TopIntegrations(clock)
    return metrics


@pytest.fixture
def clock() -> ManualClock:
    """The time of the scrapes."""
    return ManualClock()


def test_series__name_who_is_allowed_refused_and_limited(clock: ManualClock) -> None:
    """Three allowed, two over the limit, one without a route; unknown keys apart; the sum is exact."""
    metrics = listing(clock)
    traffic = ListedTraffic(metrics)
    traffic.decide(IDS[0], times=5)
    traffic.decide(IDS[0], path="/elsewhere")
    for _ in range(4):
        traffic.decider.decide(make_request(make_key().api_key), None, lambda *_: None, None)
    found = series(metrics)
    assert [found[IDS[0], result] for result in RESULTS] == [3, 2, 1, 0]
    assert found[UNKNOWN, "refused"] == 4
    assert sum(found.values()) == decisions(metrics) == 10


def test_series__tell_limit_remaining_use_and_since_when(clock: ManualClock) -> None:
    """Near its limit before it is refused; limited since the first refusal, and for a minute more."""
    metrics = listing(clock)
    traffic = ListedTraffic(metrics)
    key = IDS[0]
    traffic.decide(key, times=2)
    assert series(metrics, LIMIT) == {(key,): 60}
    assert series(metrics, REMAINING) == {(key,): pytest.approx(1 / 3)}
    assert series(metrics, LIMITED_SINCE) == {(key,): 0}
    for _ in range(55):  # one a second, as many as it may
        clock.advance(seconds=1)
        traffic.clock.advance(seconds=1)
        traffic.decide(key)
        series(metrics)
    assert series(metrics, USED) == {(key,): pytest.approx(57 / 60)}
    assert series(metrics, LIMITED_SINCE) == {(key,): 0}
    traffic.decide(key, times=5)
    clock.advance(us=SAMPLE_US)
    since_s = clock.now_us / 1e6
    assert series(metrics, LIMITED_SINCE) == {(key,): since_s}
    clock.advance(seconds=50)
    assert series(metrics, LIMITED_SINCE) == {(key,): since_s}
    clock.advance(seconds=20)
    assert series(metrics, LIMITED_SINCE) == {(key,): 0}
    assert series(metrics, REMAINING) == {(key,): 1}


def test_admitted__reaches_one_and_no_more(clock: ManualClock) -> None:
    """Whatever is asked for, a span of the last minute admits at most burst + limit x time."""
    metrics = listing(clock)
    traffic = ListedTraffic(metrics)
    key = IDS[0]
    traffic.decide(key)
    assert series(metrics, ADMITTED) == {(key,): 0}
    assert series(metrics, BURST) == {(key,): 3}
    ratios = []
    for _ in range(20):
        clock.advance(seconds=1)
        traffic.clock.advance(seconds=1)
        traffic.decide(key, times=5)
        ratios.append(series(metrics, ADMITTED)[(key,)])
    assert ratios[4] == 7 / 8  # 2 that were left of the burst and 5 in 5 s, of burst 3 and 5
    assert max(ratios) == 22 / 23


@pytest.mark.parametrize(("allowed", "ratio"), [(13, 1), (26, 2)])
def test_admitted__shows_over_admission(clock: ManualClock, allowed: int, ratio: float) -> None:
    """Two workers that do not share a bucket admit twice the limit; counts from before the first scrape
    do not matter, because their time is not known."""
    top, rows = TopIntegrations(clock), {("acme",): [1_000, 0, 0, 0, 0, 60, 3_000_000]}
    top.update([rows])
    clock.advance(seconds=10)
    rows[("acme",)][0] += allowed
    top.update([rows])
    assert top.samples({Reason.OK: 1_000 + allowed})[ADMITTED] == [(("acme",), ratio)]
    clock.advance(seconds=70)
    top.update([rows])
    assert top.samples({Reason.OK: 1_000 + allowed})[ADMITTED] == [(("acme",), 0)]


def test_admitted__begins_anew_with_another_limit(clock: ManualClock) -> None:
    """What a higher limit admitted is not over the lower one."""
    top, rows = TopIntegrations(clock), {("acme",): [0, 0, 0, 0, 0, 600, 60_000_000]}
    for allowed, limit_rpm in ((1, 600), (600, 600), (5, 60)):
        rows[("acme",)][0] += allowed
        rows[("acme",)][5] = limit_rpm
        clock.advance(seconds=10)
        top.update([rows])
    assert top.samples({Reason.OK: 606})[ADMITTED] == [(("acme",), 0)]


def test_limit__follows_the_record() -> None:
    """A changed limit is shown from the next decision on; the counts go on."""
    metrics = make_metrics()
    traffic = ListedTraffic(metrics)
    traffic.decide(IDS[0])
    changed = replace(RECORDS[0], rate_limit_rpm=120, generation=2)
    traffic.decider.snapshot = traffic.decider.snapshot.with_changes([changed])
    traffic.decide(IDS[0])
    assert series(metrics, LIMIT) == {(IDS[0],): 120}
    assert series(metrics)[IDS[0], "allowed"] == 2


def test_series__a_busier_integration_takes_the_place_of_a_quiet_one(clock: ManualClock) -> None:
    """The former one's counts move to a series of their own; no other series jumps or falls."""
    metrics = listing(clock)
    traffic = ListedTraffic(metrics, listed_max=2)
    for id in IDS[:2]:
        traffic.decide(id, path="/elsewhere", times=3)
    before = series(metrics)
    assert {id for id, _ in before} == {IDS[0], IDS[1], OTHER_ROW, FORMER, UNKNOWN}
    for _ in range(4):
        traffic.decide(IDS[1], path="/elsewhere", times=3)
        traffic.decide(IDS[2], path="/elsewhere", times=50)
        clock.advance(us=SAMPLE_US)
        after = series(metrics)
        assert sum(after.values()) == decisions(metrics)
    assert {id for id, _ in after} == {IDS[1], IDS[2], OTHER_ROW, FORMER, UNKNOWN}
    assert after[FORMER, "refused"] == 3
    assert after[IDS[1], "refused"] == 15
    assert after[IDS[2], "refused"] + after[OTHER_ROW, "refused"] == 200


def test_rows__are_handed_to_busier_integrations() -> None:
    """With all rows taken, twice the traffic of the quietest is needed; counts do not get mixed up."""
    metrics = make_metrics()
    traffic = ListedTraffic(metrics, listed_max=1)
    for id in IDS[:ROWS_PER_LISTED]:
        traffic.decide(id, times=2)
    late = IDS[ROWS_PER_LISTED]
    traffic.decide(late, path="/elsewhere", times=4)
    traffic.decider.rows.rank()
    assert (late,) not in TABLE.integrations.read(metrics.values)
    traffic.decide(late, path="/elsewhere", times=5)
    traffic.decider.rows.rank()
    traffic.decide(late, path="/elsewhere")
    traffic.decide(IDS[0], path="/elsewhere")
    rows = TABLE.integrations.read(metrics.values)
    assert list(rows[(late,)])[:4] == [0, 0, 1, 0]
    assert len(rows) == ROWS_PER_LISTED
    assert sum(series(metrics).values()) == decisions(metrics)


def compiled(count: int) -> Iterator[CompiledIntegration]:
    """*count* integrations, one after another."""
    for number in range(count):
        yield CompiledIntegration(replace(RECORDS[0], id=f"i{number}"))


def test_rows__are_bounded_with_100_000_integrations_and_10_000_invented_keys() -> None:
    """Memory and series stay as they are, and the sum stays exact."""
    metrics = make_metrics()
    rows = IntegrationRows(TABLE.integrations, metrics.values)
    for integration in compiled(100_000):
        rows.slot_of(integration)
        if integration.id.endswith("999"):
            rows.rank()
    listed_max = metrics.top.listed_max
    assert rows.held <= 2 * listed_max * ROWS_PER_LISTED
    decider = Decider(
        make_policy(), make_decider(*RECORDS).snapshot, EmbeddedBucketStore(ManualClock()), metrics
    )
    for _ in range(10_000):
        decider.decide(make_request(make_key().api_key), None, lambda *_: None, None)
    found = series(metrics)
    assert len(found) <= len(RESULTS) * (listed_max + 3)
    assert found[UNKNOWN, "refused"] == 10_000 == sum(found.values())


def test_rows__may_be_turned_off() -> None:
    """With 0 no integration has a series, and decisions are still counted."""
    metrics = make_metrics()
    ListedTraffic(metrics, listed_max=0).decide(IDS[0], times=3)
    found = series(metrics)
    assert {id for id, _ in found} == {OTHER_ROW, FORMER, UNKNOWN}
    assert found[OTHER_ROW, "allowed"] == 3


def test_series__a_total_that_is_ahead_of_its_rows_makes_none_fall(clock: ManualClock) -> None:
    """A worker decides between the two reads: sums are exact and counters rise, whatever was read when."""
    top = TopIntegrations(clock)
    rows = {("acme",): [5, 0, 0, 0, 0, 60, 60_000_000]}
    shown: list[dict[tuple[str, ...], float]] = []
    for row, total in ((5, 7), (7, 7), (9, 10), (20, 20), (20, 23)):
        rows[("acme",)][0] = row
        top.update([rows])
        shown.append(dict(top.samples({Reason.OK: total})[DECISIONS]))
        assert sum(shown[-1].values()) == total
    assert [found["acme", "allowed"] for found in shown] == [5, 5, 8, 18, 20]
    assert [found[OTHER_ROW, "allowed"] for found in shown] == [2, 2, 2, 2, 3]


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.integers(0, len(IDS) - 1), st.integers(0, 2)),
        st.tuples(st.sampled_from(["rank", "restart"]), st.just(0), st.integers(0, 2)),
        st.tuples(st.sampled_from(["scrape", "wait"]), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=30, deadline=None)
@given(MOVES)
def test_series__add_up_and_never_fall(moves: list[tuple[str, int, int]]) -> None:
    """However three workers decide, rank, end and start again: exact sums, and no counter falls."""
    clock = ManualClock(NOW_US)
    counts = WorkerCounts(TABLE)
    listing(clock, counts)
    blocks = [counts.add_block() for _ in range(3)]
    workers = [ListedTraffic(Metrics(TABLE, block.values), listed_max=1) for block in blocks]
    counts.top.listed_max = 1
    before: dict[tuple[str, ...], float] = {}
    made = 0
    for move, number, worker in moves:
        if move == "decide":
            workers[worker].decide(IDS[number], path="/elsewhere", times=3)
            made += 3
        elif move == "rank":
            workers[worker].decider.rows.rank()
        elif move == "restart":
            counts.retire(blocks[worker])
            blocks[worker] = counts.add_block()
            workers[worker] = ListedTraffic(Metrics(TABLE, blocks[worker].values), listed_max=1)
        else:
            clock.advance(us=SAMPLE_US if move == "wait" else 0)
            found = series(counts)
            assert sum(found.values()) == made
            shared = before.keys() & found.keys()
            assert all(found[labels] >= before[labels] for labels in shared)
            before = found
    for block in blocks:
        counts.retire(block)
    assert sum(series(counts).values()) == made

"""Counts that outlive the process that counted them, exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.observe.metrics import MetricKind, Metrics, MetricSpec, MetricTable
from sidecar.observe.shared import CountBlock, LayoutError, WorkerCounts, layout_mark
from sidecar.observe.table import TABLE, WORKER_GAUGE_RULES

TOY = MetricTable(
    (
        MetricSpec("toys_total", "Toys.", labels=(("colour", ("red", "green")),)),
        MetricSpec("children", "Children."),
        MetricSpec("highest", "Highest tower.", labels=(("colour", ("red", "green")),)),
        MetricSpec("play_seconds", "Play.", buckets_ns=(1_000_000, 2_500_000_000)),
    )
)
RULES = {"highest": max}

# A worker that counts as fast as it can: both counts in turn, and tells how far it surely has come.
COUNTER = """
import os, sys
from sidecar.observe.metrics import Metrics, MetricSpec, MetricTable
from sidecar.observe.shared import CountBlock
table = MetricTable((
    MetricSpec("first_total", "First."),
    MetricSpec("second_total", "Second."),
))
metrics = Metrics(table, CountBlock.attach(table, int(sys.argv[1])).values)
values, reported = metrics.values, 0
while True:
    values[0] += 1
    values[1] += 1
    if values[1] % 1000 == 0:
        os.write(1, values[1].to_bytes(8, "little"))
"""
PAIR = MetricTable((MetricSpec("first_total", "First."), MetricSpec("second_total", "Second.")))


def attached(block: CountBlock, table: MetricTable = TOY) -> CountBlock:
    """The same block, as another process maps it."""
    return CountBlock.attach(table, os.dup(block.fd))


def open_fds() -> int:
    """How many file descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def total(counts: WorkerCounts, name: str, *labels: str) -> int:
    """One value of the sum."""
    return counts.totals()[counts.slot(name, *labels)]


def test_block__what_one_process_counts_the_other_reads() -> None:
    """One memory, two maps of it; it begins with zeros."""
    block = CountBlock.create(TOY)
    other = attached(block)
    metrics = Metrics(TOY, other.values)
    metrics.add("toys_total", "green", by=3)
    metrics.histogram("play_seconds").observe_ns(7)
    assert Metrics(TOY, block.values).value("toys_total", "green") == 3
    assert block.values.tolist() == other.values.tolist()
    assert sum(block.values) == 3 + 1 + 7
    block.close()
    metrics.add("toys_total", "green")
    assert other.values[TOY.slot("toys_total", "green")] == 4
    other.close()


def test_block__beats_beside_the_counts() -> None:
    """A sign of life touches no count."""
    block = CountBlock.create(TOY)
    other = attached(block)
    for _ in range(3):
        other.raise_beat()
    assert (block.beat, sum(block.values)) == (3, 0)
    block.close()
    other.close()


def test_block__another_layout_is_refused() -> None:
    """A worker of another version must not count into the wrong places: not even of the same size."""
    block = CountBlock.create(TOY)
    renamed = MetricTable((replace(TOY.specs[0], name="boys_total"), *TOY.specs[1:]))
    longer = MetricTable((*TOY.specs, MetricSpec("more_total", "More.")))
    assert renamed.size == TOY.size
    for table in (renamed, longer):
        with pytest.raises(LayoutError, match="stop and start the whole sidecar"):
            CountBlock.attach(table, block.fd)
    block.close()


def test_mark__tells_whatever_moves_a_count() -> None:
    """Name, labels, buckets and order all count; the help text does not."""
    toys, children, highest, play = TOY.specs
    tables = [
        MetricTable(specs)
        for specs in (
            (toys, children, highest, play),
            (children, toys, highest, play),
            (replace(toys, labels=(("colour", ("green", "red")),)), children, highest, play),
            (toys, children, highest, replace(play, buckets_ns=(1_000_001, 2_500_000_000))),
        )
    ]
    assert len({layout_mark(table) for table in tables}) == len(tables)
    reworded = MetricTable((replace(toys, help="Other."), *TOY.specs[1:]))
    assert layout_mark(reworded) == layout_mark(TOY)


def test_block__cannot_be_shrunk_under_a_reader() -> None:
    """A defective worker must not end the supervisor with SIGBUS."""
    block = CountBlock.create(TOY)
    with pytest.raises(PermissionError):
        os.ftruncate(block.fd, 0)
    block.close()


def test_counts__add_up_own_living_and_retired() -> None:
    """Counters and histograms of all; gauges of the living, by their rule."""
    counts = WorkerCounts(TOY, RULES)
    blocks = [counts.add_block() for _ in range(3)]
    for number, block in enumerate(blocks, 1):
        metrics = Metrics(TOY, block.values)
        metrics.add("toys_total", "red", by=number)
        metrics.set("children", to=10 * number)
        metrics.set("highest", "green", to=number)
        metrics.histogram("play_seconds").observe_ns(number)
    counts.add("toys_total", "red", by=100)
    counts.set("children", to=1_000)
    assert total(counts, "toys_total", "red") == 106
    assert (total(counts, "children"), total(counts, "highest", "green")) == (1_060, 3)
    counts.retire(blocks[2])
    assert total(counts, "toys_total", "red") == 106
    assert (total(counts, "children"), total(counts, "highest", "green")) == (1_030, 2)
    first = counts.slot("play_seconds")
    assert counts.totals()[first : first + 4] == [3, 0, 0, 1 + 2 + 3]
    for block in blocks[:2]:
        counts.retire(block)
    assert (total(counts, "toys_total", "red"), total(counts, "children")) == (106, 1_000)


def test_counts__retiring_gives_everything_back() -> None:
    """A thousand crashes later there is not one file descriptor and not one map more."""
    counts = WorkerCounts(TOY)
    before = open_fds()
    for _ in range(1_000):
        block = counts.add_block()
        block.values[0] += 1
        counts.retire(block)
    assert open_fds() == before
    assert total(counts, "toys_total", "red") == 1_000


def test_counts__collect_the_sum_and_whatever_comes_along() -> None:
    """What Prometheus gets: one series for all workers, then the families of other collectors."""

    class Along(Collector):
        def collect(self) -> Iterator[Metric]:
            yield GaugeMetricFamily("along", "Along.", value=5)

    counts = WorkerCounts(TOY)
    counts.collect_along(Along())
    Metrics(TOY, counts.add_block().values).add("toys_total", "red")
    Metrics(TOY, counts.add_block().values).add("toys_total", "red")
    families = {family.name: family for family in counts.collect()}
    assert list(families) == ["toys", "children", "highest", "play_seconds", "along"]
    assert [sample.value for sample in families["toys"].samples] == [2, 0]


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.just(0)),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("count"), st.integers(0, 5)),
        st.tuples(st.just("own"), st.just(0)),
    ),
    max_size=60,
)


@given(moves=MOVES)
def test_counts__never_fall_and_never_lose(moves: Sequence[tuple[str, int]]) -> None:
    """Whatever starts, counts and ends in whatever order: the sum is what was counted, at every moment."""
    counts = WorkerCounts(TOY)
    blocks: list[CountBlock] = []
    counted = 0
    for move, number in moves:
        if move == "start":
            blocks.append(counts.add_block())
        elif move == "own":
            counts.add("toys_total", "red")
            counted += 1
        elif blocks and move == "end":
            counts.retire(blocks.pop(number % len(blocks)))
        elif blocks and move == "count":
            blocks[number % len(blocks)].values[TOY.slot("toys_total", "red")] += 1
            counted += 1
        assert total(counts, "toys_total", "red") == counted
    for block in blocks:
        counts.retire(block)


@pytest.mark.parametrize("told_before_death", range(1, 6))
def test_counts__kill_9_loses_and_doubles_nothing(told_before_death: int) -> None:
    """
    A process that is killed amid its increments leaves each count at a whole number of them.

    It counts one, then the other: they differ by at most the one increment it was in, they are not
    behind what it has reported, and folding them in changes no number.
    """
    counts = WorkerCounts(PAIR)
    block = counts.add_block()
    child = subprocess.Popen(
        [sys.executable, "-c", COUNTER, str(block.fd)], pass_fds=(block.fd,), stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    reported, seen = 0, [0, 0]
    try:
        for _ in range(told_before_death):
            reported = int.from_bytes(child.stdout.read(8), "little")
            now = counts.totals()
            assert all(after >= before for before, after in zip(seen, now, strict=True))
            seen = now
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        child.stdout.close()
    dead = counts.totals()
    counts.retire(block)
    assert counts.totals() == dead
    first, second = dead
    assert reported <= second <= first <= second + 1
    assert first >= seen[0] and second >= seen[1]


def test_rules__name_gauges_of_the_table() -> None:
    """A rule for a metric that is no gauge, or was removed, would do nothing."""
    gauges = {spec.name for spec in TABLE.specs if spec.kind is MetricKind.GAUGE}
    assert set(WORKER_GAUGE_RULES) <= gauges


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("sidecar_ready", (0, 1, 0), 1),
        ("sidecar_ready", (0, 0), 0),
        ("sidecar_registry_integrations", (0, 12, 12), 12),
        ("sidecar_registry_credentials", (0, 30, 31), 31),
        ("sidecar_registry_loaded_timestamp_seconds", (0, 1_700_000_009, 1_700_000_001), 1_700_000_001),
        ("sidecar_registry_loaded_timestamp_seconds", (0, 0), 0),
    ],
)
def test_rules__what_all_workers_tell_is_reported_once(
    name: str, values: tuple[int, ...], expected: int
) -> None:
    """Twelve integrations in two workers are twelve; the oldest registry is the one to worry about."""
    assert WORKER_GAUGE_RULES[name](values) == expected

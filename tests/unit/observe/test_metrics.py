"""One flat array of integers, and the Prometheus text that is made of it."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.domain.decisions import Reason
from sidecar.observe.metrics import Metrics, MetricSpec, MetricTable
from sidecar.observe.table import TABLE

COLOURS = ("red", "green")
SIZES = ("s", "m", "l")

TOY = MetricTable(
    (
        MetricSpec("toys_total", "Toys.", labels=(("colour", COLOURS), ("size", SIZES))),
        MetricSpec("children", "Children."),
        MetricSpec("play_seconds", "Play.", buckets_ns=(1_000_000, 2_500_000_000)),
        MetricSpec("calls_seconds", "Calls.", labels=(("colour", COLOURS),), buckets_ns=(5_000,)),
        MetricSpec(
            "pairs_total",
            "Pairs that occur.",
            labels=(("colour", COLOURS), ("size", SIZES)),
            only=(("red", "s"), ("green", "l")),
        ),
    )
)


def exposed(metrics: Metrics) -> dict[str, Metric]:
    """The metric families that a scraper reads out of the text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(family: Metric) -> dict[tuple[str, ...], float]:
    """Values of a family by sample name and label values."""
    return {(sample.name, *sample.labels.values()): sample.value for sample in family.samples}


def test_table__gives_every_series_its_own_slots() -> None:
    """No two series share a slot, none lies outside, none is left over."""
    taken = [
        first + offset
        for spec in TOY.specs
        for labels in spec.series
        for first in [TOY.slot(spec.name, *labels)]
        for offset in range(spec.width)
    ]
    assert sorted(taken) == list(range(TOY.size))


def test_table__refuses_two_rows_of_one_name() -> None:
    """They would be added up as one metric by anyone who reads them."""
    row = MetricSpec("toys_total", "Toys.")
    with pytest.raises(ValueError, match="two metrics named toys_total"):
        MetricTable((row, row))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("unknown", ()),
        ("children", ("red",)),
        ("toys_total", ()),
        ("toys_total", ("red",)),
        ("toys_total", ("blue", "s")),
        ("toys_total", ("s", "red")),
        ("pairs_total", ("red", "l")),
    ],
)
def test_slot__refuses_what_is_not_in_the_table(name: str, labels: tuple[str, ...]) -> None:
    """A label value outside its closed list is a fault of ours, never a new series."""
    with pytest.raises(KeyError):
        Metrics(TOY).slot(name, *labels)


def test_counters__count() -> None:
    """By slot on the hot path, by name elsewhere; other series stay as they are."""
    metrics = Metrics(TOY)
    metrics.values[metrics.slot("toys_total", "red", "m")] += 1
    metrics.add("toys_total", "red", "m", by=4)
    metrics.add("toys_total", "green", "l")
    assert metrics.value("toys_total", "red", "m") == 5
    assert metrics.value("toys_total", "green", "l") == 1
    assert sum(metrics.values) == 6


def test_gauges__are_set() -> None:
    """To any value, also down."""
    metrics = Metrics(TOY)
    metrics.set("children", to=7)
    metrics.add("children", by=-3)
    assert metrics.value("children") == 4


@pytest.mark.parametrize(
    ("duration_ns", "expected"),
    [
        (0, [1, 0, 0]),
        (1_000_000, [1, 0, 0]),
        (1_000_001, [0, 1, 0]),
        (2_500_000_000, [0, 1, 0]),
        (2_500_000_001, [0, 0, 1]),
    ],
)
def test_histogram__a_bound_belongs_to_its_bucket(duration_ns: int, expected: list[int]) -> None:
    """As Prometheus has it: le means less or equal."""
    metrics = Metrics(TOY)
    metrics.histogram("play_seconds").observe_ns(duration_ns)
    first = metrics.slot("play_seconds")
    assert list(metrics.values[first : first + 4]) == [*expected, duration_ns]


def test_collect__is_text_that_a_scraper_reads() -> None:
    """Every series is there with its value, zeros included, under the names and kinds of the table."""
    metrics = Metrics(TOY)
    metrics.add("toys_total", "red", "m", by=5)
    metrics.set("children", to=-2)
    metrics.add("pairs_total", "green", "l")
    families = exposed(metrics)
    assert {name: family.type for name, family in families.items()} == {
        "toys": "counter",
        "children": "gauge",
        "play_seconds": "histogram",
        "calls_seconds": "histogram",
        "pairs": "counter",
    }
    assert families["toys"].documentation == "Toys."
    assert samples(families["toys"]) == {
        ("toys_total", colour, size): 5.0 if (colour, size) == ("red", "m") else 0.0
        for colour in COLOURS
        for size in SIZES
    }
    assert samples(families["children"]) == {("children",): -2.0}
    assert samples(families["pairs"]) == {
        ("pairs_total", "red", "s"): 0.0,
        ("pairs_total", "green", "l"): 1.0,
    }


def test_collect__histograms_add_up() -> None:
    """Buckets are cumulative, the last is the count, the sum is in seconds."""
    metrics = Metrics(TOY)
    recorder = metrics.histogram("play_seconds")
    for duration_ns in (500_000, 1_000_000, 2_000_000, 3_000_000_000):
        recorder.observe_ns(duration_ns)
    assert samples(exposed(metrics)["play_seconds"]) == {
        ("play_seconds_bucket", "0.001"): 2.0,
        ("play_seconds_bucket", "2.5"): 3.0,
        ("play_seconds_bucket", "+Inf"): 4.0,
        ("play_seconds_count",): 4.0,
        ("play_seconds_sum",): pytest.approx(3.0035),
    }


def test_collect__histograms_with_labels() -> None:
    """Each series has its own buckets and sum."""
    metrics = Metrics(TOY)
    metrics.histogram("calls_seconds", "green").observe_ns(9_000)
    values = samples(exposed(metrics)["calls_seconds"])
    assert values["calls_seconds_bucket", "green", "5e-06"] == 0.0
    assert values["calls_seconds_count", "green"] == 1.0
    assert values["calls_seconds_sum", "green"] == pytest.approx(9e-06)
    assert values["calls_seconds_count", "red"] == values["calls_seconds_sum", "red"] == 0.0


def test_metrics__workers_count_into_shared_memory() -> None:
    """Any writable buffer of 64-bit integers does, so that one process can add up all workers."""
    memory = SharedMemory(create=True, size=8 * TOY.size)
    try:
        assert memory.buf is not None
        values = memory.buf[: 8 * TOY.size].cast("q")
        Metrics(TOY, values).add("children", by=3)
        Metrics(TOY, values).add("children", by=4)
        assert Metrics(TOY, values).value("children") == 7
        values.release()
    finally:
        memory.close()
        memory.unlink()


def test_metrics__counts_beyond_32_bits() -> None:
    """A busy sidecar counts more than four thousand million."""
    metrics = Metrics(TOY)
    metrics.add("children", by=2**40)
    assert samples(exposed(metrics)["children"]) == {("children",): float(2**40)}


def test_program_table__is_text_that_a_scraper_reads() -> None:
    """Every row of the program's own table comes out, with every series once."""
    families = exposed(Metrics(TABLE))
    for spec in TABLE.specs:
        family = families[spec.name.removesuffix("_total")]
        assert family.documentation == spec.help
        if spec.is_of_integrations:
            continue
        names = [name for name, _ in spec.labels]
        labels = {tuple(sample.labels[name] for name in names) for sample in family.samples}
        assert labels == (set() if spec.rows_max else set(spec.series))  # no row was named yet


def test_program_table__counts_decisions_by_pairs_that_occur() -> None:
    """Thirteen series for thirteen reasons, not thirty-nine."""
    (spec,) = [spec for spec in TABLE.specs if spec.name == "sidecar_decisions_total"]
    assert set(spec.series) == {(reason.verdict.value, reason.label) for reason in Reason}


def test_program_table__follows_prometheus_conventions() -> None:
    """Durations are in seconds, and everything begins with sidecar_."""
    for spec in TABLE.specs:
        assert spec.name.startswith("sidecar_")
        assert list(spec.buckets_ns) == sorted(set(spec.buckets_ns))
        assert not spec.buckets_ns or spec.name.endswith("_seconds")
        assert spec.help.endswith(".")

"""Rows of metrics: named at run time, bounded, read out of shared memory, added up over workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.observe.metrics import Metrics, MetricSpec, MetricTable
from sidecar.observe.rows import OTHER_ROW, TEXT_BYTES_MAX
from sidecar.observe.shared import WorkerCounts

SPEC = MetricSpec(
    "t_hits_total", "Hits.", labels=(("result", ("in", "out")),), row_labels=("domain", "rule"), rows_max=4
)
TABLE = MetricTable((MetricSpec("t_before_total", "Before."), SPEC))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def shown(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """The samples of the metric with rows."""
    family = list(metrics.collect())[1]
    return {
        (sample.labels["domain"], sample.labels["rule"], sample.labels["result"]): sample.value
        for sample in family.samples
    }


def test_rows__count_by_their_names() -> None:
    """A name gets a row once; its counts follow in the order of the other labels."""
    metrics = Metrics(TABLE)
    first = metrics.row("t_hits_total", "shop", "user")
    metrics.values[first + 1] += 5
    assert metrics.row("t_hits_total", "shop", "user") == first
    assert metrics.row("t_hits_total", "shop", "usher") != first
    assert shown(metrics)[("shop", "user", "out")] == 5
    assert shown(metrics)[("shop", "user", "in")] == 0


def test_rows__are_bounded() -> None:
    """When the last row is left, every further name shares it; 10,000 names make no more."""
    metrics = Metrics(TABLE)
    for number in range(10_000):
        metrics.values[metrics.row("t_hits_total", "shop", str(number))] += 1
    counts = shown(metrics)
    assert counts[(OTHER_ROW, OTHER_ROW, "in")] == 9_997
    assert len(counts) == 2 * SPEC.rows_max


def test_rows__workers_are_added_up_by_name() -> None:
    """Workers number their rows as they like; what an ended one counted stays."""
    counts = WorkerCounts(TABLE)
    blocks = [counts.add_block() for _ in range(2)]
    for block, names in zip(blocks, (("a", "b"), ("b", "c")), strict=True):
        worker = Metrics(TABLE, block.values)
        for name in names:
            worker.values[worker.row("t_hits_total", "shop", name)] += 1
    counts.retire(blocks[0])
    again = Metrics(TABLE, counts.add_block().values)
    again.values[again.row("t_hits_total", "shop", "c")] += 1
    found = {rule: value for (_, rule, result), value in shown(counts).items() if result == "in"}
    assert found == {"a": 1, "b": 2, "c": 2}


def kept(labels: tuple[str, str]) -> tuple[str, ...]:
    """The labels of a row that was given these."""
    metrics = Metrics(TABLE)
    metrics.row("t_hits_total", *labels)
    [row] = metrics.rows()["t_hits_total"]
    return row


@given(st.tuples(texts, texts))
def test_rows__short_names_are_kept_whole(labels: tuple[str, str]) -> None:
    """What is packed is unpacked again; a long text is cut and keeps its number of labels."""
    if len("\0".join(labels).encode()) <= TEXT_BYTES_MAX:
        assert kept(labels) == labels
    assert len(kept(labels)) == 2


@pytest.mark.parametrize("labels", [("d", "r" * 300), ("d" * 300, "r"), ("ä" * 127, "r" * 9)])
def test_rows__long_names_differ(labels: tuple[str, str]) -> None:
    """Two long names that begin alike are two rows."""
    assert kept(labels) != kept((labels[0] + "x", labels[1]))
    assert len(kept(labels)) == 2

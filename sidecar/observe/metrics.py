"""
Metrics in one table, stored in a flat array of 64-bit integers.

Label values come only from closed lists known at start, never from a caller, so each series has a fixed slot
and hot paths count with `values[slot] += 1`: no lock, no dict, no string. The array is any writable buffer of
signed 64-bit integers; workers use shared memory, so that one process can add up the counts of all workers
and no counts of an ended worker are lost.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.domain.decisions import Reason
from sidecar.observe.histograms import HistogramRecorder
from sidecar.observe.integration_rows import ROW_COUNTS, ROWS_MAX
from sidecar.observe.rows import Row, Rows, RowTable
from sidecar.observe.top_integrations import TopIntegrations

DECISIONS = "sidecar_decisions_total"
Samples: TypeAlias = "Sequence[tuple[Row, float]]"
"""Label values and value of each series of a metric."""


class MetricKind(Enum):
    """The Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """
    One row of the table: a histogram if it has buckets, a counter if its name ends in `_total`, else a gauge.

    `labels` maps each label name to the closed list of its values. `buckets_ns` are the upper bounds
    of a histogram in nanoseconds, ascending, without infinity; it is exported in seconds. `only` lists the
    possible combinations of label values; empty = all. `row_labels` come before the other labels and get
    their values from the configuration in force, at most `rows_max` combinations; see `rows`. With
    `row_labels` and `rows_max` 0 the metric is about single integrations; see `top_integrations`.
    """

    name: str
    help: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    buckets_ns: tuple[int, ...] = ()
    only: tuple[tuple[str, ...], ...] = ()
    row_labels: tuple[str, ...] = ()
    rows_max: int = 0

    @property
    def kind(self) -> MetricKind:
        """The Prometheus type."""
        if self.buckets_ns:
            return MetricKind.HISTOGRAM
        return MetricKind.COUNTER if self.name.endswith("_total") else MetricKind.GAUGE

    @property
    def width(self) -> int:
        """Number of slots of one series: 1, or for a histogram buckets + infinity + sum."""
        return len(self.buckets_ns) + 2 if self.kind is MetricKind.HISTOGRAM else 1

    @property
    def is_of_integrations(self) -> bool:
        """Whether its series are those of `TopIntegrations`, which have no slots of their own."""
        return bool(self.row_labels) and not self.rows_max

    @property
    def series(self) -> tuple[tuple[str, ...], ...]:
        """Every combination of label values, in slot order."""
        return self.only or tuple(itertools.product(*(values for _, values in self.labels)))


class MetricTable:
    """
    Metric specs and the first slot of each; the layout depends only on the specs.

    `rows` are the row tables of the metrics that have rows, by metric name; `integrations` has the rows of
    single integrations. All rows are behind the `head_size` slots of the other metrics.
    """

    def __init__(self, specs: Sequence[MetricSpec]) -> None:
        """
        Lay out *specs* one after another.

        Raises:
            ValueError: two specs have the same name.
        """
        self.specs = tuple(specs)
        self._first: dict[str, int] = {}
        self._spec: dict[str, MetricSpec] = {}
        self.rows: dict[str, RowTable] = {}
        size = 0
        for spec in self.specs:
            if spec.name in self._spec:
                raise ValueError(f"two metrics named {spec.name}")
            self._spec[spec.name] = spec
            if not spec.row_labels:
                self._first[spec.name] = size
                size += spec.width * len(spec.series)
        self.head_size = size
        for spec in self.specs:
            if spec.rows_max:
                self.rows[spec.name] = RowTable(size, spec.rows_max, len(spec.series))
                size += self.rows[spec.name].size
        has_integrations = any(spec.is_of_integrations for spec in self.specs)
        self.integrations = RowTable(size, ROWS_MAX if has_integrations else 0, ROW_COUNTS)
        self.size = size + self.integrations.size

    def slot(self, name: str, *labels: str) -> int:
        """
        The slot of one series.

        Raises:
            KeyError: the metric is unknown, or a label value is not in its list.
        """
        spec = self._spec[name]
        try:
            return self._first[name] + spec.series.index(labels) * spec.width
        except ValueError:
            raise KeyError(f"metric {name} has no series {labels}") from None

    def buckets_ns(self, name: str) -> tuple[int, ...]:
        """The upper bounds of histogram *name*, in nanoseconds."""
        return self._spec[name].buckets_ns


class Metrics(Collector):
    """The counts of one process, and their collector for prometheus-client."""

    def __init__(self, table: MetricTable, values: memoryview | None = None) -> None:
        """
        Count into *values*: a writable buffer of `table.size` signed 64-bit integers ('q').

        *values* None = private memory of this process.
        """
        self.table = table
        self.values = values if values is not None else memoryview(array("q", bytes(8 * table.size)))
        self._row_slots: dict[str, dict[tuple[str, ...], int]] = {name: {} for name in table.rows}
        self.top = TopIntegrations()
        """The integrations that have series of their own."""

    def slot(self, name: str, *labels: str) -> int:
        """See `MetricTable.slot`."""
        return self.table.slot(name, *labels)

    def add(self, name: str, *labels: str, by: int = 1) -> None:
        """Count in a slow path; hot paths look up the slot once."""
        self.values[self.table.slot(name, *labels)] += by

    def set(self, name: str, *labels: str, to: int) -> None:
        """Set a gauge."""
        self.values[self.table.slot(name, *labels)] = to

    def value(self, name: str, *labels: str) -> int:
        """Read one counter or gauge."""
        return self.values[self.table.slot(name, *labels)]

    def row(self, name: str, *labels: str) -> int:
        """The slot of the first count of a row by its labels; its other counts follow in series order."""
        slots = self._row_slots[name]
        slot = slots.get(labels)
        if slot is None:
            slot = slots[labels] = self.table.rows[name].name(self.values, len(slots), labels)
        return slot

    def rows(self) -> dict[str, Rows]:
        """The rows of each metric that has some, by the metric's name."""
        return {name: rows.read(self.values) for name, rows in self.table.rows.items()}

    def histogram(self, name: str, *labels: str) -> HistogramRecorder:
        """A recorder for one histogram series."""
        return HistogramRecorder(self.values, self.slot(name, *labels), self.table.buckets_ns(name))

    def integration_rows(self) -> list[Rows]:
        """The rows of single integrations in each deciding process."""
        return [self.table.integrations.read(self.values)]

    def totals(self) -> list[int]:
        """All counts, slot by slot, without those of rows."""
        return self.values[: self.table.head_size].tolist()

    def _snapshot(self) -> tuple[list[int], dict[str, list[tuple[Row, float]]]]:
        """The counts, and the samples of single integrations that add up to them."""
        if not self.table.integrations.rows_max:
            return self.totals(), {}
        self.top.update(self.integration_rows())
        totals = self.totals()  # after the rows, so that the rows are never ahead
        slots = {reason: self.table.slot(DECISIONS, reason.verdict.value, reason.label) for reason in Reason}
        return totals, self.top.samples({reason: totals[slot] for reason, slot in slots.items()})

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family in table order, all of one moment."""
        totals, integrations = self._snapshot()
        return collect(self.table, totals, self.rows(), integrations)


def collect(
    table: MetricTable, values: Sequence[int], rows: Mapping[str, Rows], integrations: Mapping[str, Samples]
) -> Iterator[Metric]:
    """
    Convert one flat array to metric families.

    *rows* and *integrations* are the rows, and the samples about single integrations, by metric.
    """
    for spec in table.specs:
        if spec.is_of_integrations:
            family = _new_family(spec, [*spec.row_labels, *(name for name, _ in spec.labels)])
            for labels, value in integrations[spec.name]:
                family.add_metric(labels, value)
            yield family
        elif spec.rows_max:
            yield _row_family(spec, rows[spec.name])
        else:
            yield _family(spec, table.slot(spec.name, *spec.series[0]), values)


def _row_family(spec: MetricSpec, rows: Rows) -> Metric:
    names = [*spec.row_labels, *(name for name, _ in spec.labels)]
    family = _new_family(spec, names)
    for row, counts in rows.items():
        for labels, count in zip(spec.series, counts, strict=True):
            family.add_metric((*row, *labels), count)
    return family


def _family(spec: MetricSpec, first: int, values: Sequence[int] | memoryview) -> Metric:
    names = [name for name, _ in spec.labels]
    if spec.kind is MetricKind.HISTOGRAM:
        return _histogram_family(spec, names, first, values)
    family = _new_family(spec, names)
    for offset, labels in enumerate(spec.series):
        family.add_metric(labels, values[first + offset])
    return family


def _new_family(spec: MetricSpec, names: list[str]) -> CounterMetricFamily | GaugeMetricFamily:
    if spec.kind is MetricKind.COUNTER:
        return CounterMetricFamily(spec.name, spec.help, labels=names)
    return GaugeMetricFamily(spec.name, spec.help, labels=names)


def _histogram_family(
    spec: MetricSpec, names: list[str], first: int, values: Sequence[int] | memoryview
) -> Metric:
    family = HistogramMetricFamily(spec.name, spec.help, labels=names)
    for offset, labels in enumerate(spec.series):
        start = first + offset * spec.width
        total = 0
        buckets = []
        for index, bound in enumerate(spec.buckets_ns):
            total += values[start + index]
            buckets.append((f"{bound / 1e9:g}", float(total)))
        total += values[start + len(spec.buckets_ns)]
        buckets.append(("+Inf", float(total)))
        family.add_metric(labels, buckets, sum_value=values[start + spec.width - 1] / 1e9)
    return family

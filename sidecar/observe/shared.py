"""
Counts in shared memory: each worker counts in its own block, and one process adds up all blocks.

A block is a memfd that both processes map. Only its worker writes to it, with one aligned 64-bit store per
count, so a reader never sees a partial number, and kill -9 never corrupts a count. The memory outlives its
worker: the counts of an ended worker are added to those of the retired workers, so the sum never decreases.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from sidecar.observe.metrics import MetricKind, Metrics, MetricTable
from sidecar.observe.rows import Row, Rows, added

WORD_BYTES = 8
HEADER_WORDS = 8
"""Layout mark (2 words), heartbeat (1 word), reserved words."""

_BEAT_WORD = 2
_MARK_BYTES = 16

GaugeRule: TypeAlias = Callable[[Sequence[int]], int]
"""Combines the values of all processes into one."""


class LayoutError(Exception):
    """The block was created by another version of the program, with another layout of counts."""


def layout_mark(table: MetricTable) -> bytes:
    """A hash of 16 bytes over the rows of *table*, which determine the layout of its counts."""
    rows = repr(
        [
            (spec.name, spec.kind.value, spec.row_labels, spec.series, spec.buckets_ns, spec.rows_max)
            for spec in table.specs
        ]
    )
    return hashlib.sha256(rows.encode()).digest()[:_MARK_BYTES]


class CountBlock:
    """
    The counts of one process in memory that another process can read.

    `Metrics` counts into `values`. `fd` may be passed to a child process.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Map the memfd *fd* of *size* counts and take ownership of it; see `create` and `attach`."""
        self.fd = fd
        self._memory = mmap.mmap(fd, _block_bytes(size))
        self._words = memoryview(self._memory).cast("q")
        self.values = self._words[HEADER_WORDS:]

    @classmethod
    def create(cls, table: MetricTable) -> Self:
        """
        Create a block with all counts at 0.

        Raises:
            OSError: the process is out of memory or file descriptors.
        """
        fd = os.memfd_create("sidecar-counts", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, _block_bytes(table.size))
            # If the memory shrank, reading it would kill the process (SIGBUS).
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            os.pwrite(fd, layout_mark(table), 0)
            return cls(fd, table.size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, table: MetricTable, fd: int) -> Self:
        """
        Map the block that another process created and passed as *fd*.

        Raises:
            LayoutError: the block was created for another table.
        """
        size = os.fstat(fd).st_size
        if size != _block_bytes(table.size) or os.pread(fd, _MARK_BYTES, 0) != layout_mark(table):
            raise LayoutError(
                "the counts in shared memory have the layout of another version, because the program was"
                " replaced while it ran; stop and start the whole sidecar, SIGHUP is not enough"
            )
        return cls(fd, table.size)

    @property
    def beat(self) -> int:
        """A number that the owner increments regularly to show that its event loop runs."""
        return self._words[_BEAT_WORD]

    def raise_beat(self) -> None:
        """Increment `beat`."""
        self._words[_BEAT_WORD] += 1

    def close(self) -> None:
        """Unmap the block and close its file descriptor."""
        self.values.release()
        self._words.release()
        self._memory.close()
        os.close(self.fd)


def _block_bytes(size: int) -> int:
    return (HEADER_WORDS + size) * WORD_BYTES


@dataclass(frozen=True, slots=True)
class _Gauge:
    slot: int
    rule: GaugeRule


class WorkerCounts(Metrics):
    """
    The supervisor's own counts, and on collection the sum with those of all workers, dead ones included.

    Counters and histograms add up. So do gauges, over the living only, unless *rules* say otherwise:
    a value that every worker reports must not be multiplied by their number.

    Everything happens in one thread, so a collection sees a worker either in its block or retired.
    """

    def __init__(self, table: MetricTable, rules: Mapping[str, GaugeRule] | None = None) -> None:
        """Combine the gauges named in *rules* by their rule."""
        super().__init__(table)
        self._blocks: list[CountBlock] = []
        self._gauges = tuple(_gauges(table, rules or {}))
        others = {gauge.slot for gauge in self._gauges}
        self._counter_slots = tuple(slot for slot in range(table.head_size) if slot not in others)
        self._retired_rows: dict[str, dict[Row, list[int]]] = {name: {} for name in table.rows}
        self._retired = [0] * table.head_size
        self._others: list[Collector] = []

    def collect_along(self, collector: Collector) -> None:
        """Collect *collector* after the table, too."""
        self._others.append(collector)

    def add_block(self) -> CountBlock:
        """
        A new block, for a worker that is about to start; counted until `retire`.

        Raises:
            OSError: the process has no memory or no file descriptor left.
        """
        block = CountBlock.create(self.table)
        self._blocks.append(block)
        return block

    def retire(self, block: CountBlock) -> None:
        """Keep the counters of a worker that has ended, drop its gauges, and close its block."""
        self.top.update(self.integration_rows())
        self._blocks.remove(block)
        self.top.rebase(self.integration_rows())
        for slot in self._counter_slots:
            self._retired[slot] += block.values[slot]
        for name, rows in self.table.rows.items():
            self._retired_rows[name] = added((self._retired_rows[name], rows.read(block.values)))
        block.close()

    def totals(self) -> list[int]:
        """All counts of the program, slot by slot."""
        totals = list(self._retired)
        sources = [self.values, *(block.values for block in self._blocks)]
        for values in sources:
            for slot in self._counter_slots:
                totals[slot] += values[slot]
        for gauge in self._gauges:
            totals[gauge.slot] = gauge.rule([values[gauge.slot] for values in sources])
        return totals

    def rows(self) -> dict[str, Rows]:
        """The rows of the program, added up by their labels."""
        sources = [self.values, *(block.values for block in self._blocks)]
        return {
            name: added((self._retired_rows[name], *(rows.read(values) for values in sources)))
            for name, rows in self.table.rows.items()
        }

    def integration_rows(self) -> list[Rows]:
        """The rows of single integrations in each worker."""
        return [self.table.integrations.read(block.values) for block in self._blocks]

    def value(self, name: str, *labels: str) -> int:
        """Read one counter or gauge of the program."""
        return self.totals()[self.table.slot(name, *labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family in table order, then those of the other collectors."""
        yield from super().collect()
        for other in self._others:
            yield from other.collect()


def _gauges(table: MetricTable, rules: Mapping[str, GaugeRule]) -> Iterator[_Gauge]:
    for spec in table.specs:
        if spec.kind is MetricKind.GAUGE and not spec.row_labels:
            first = table.slot(spec.name, *spec.series[0])
            for offset in range(len(spec.series)):
                yield _Gauge(first + offset, rules.get(spec.name, sum))

"""Rows that wait for the disk, as text: bounded in bytes, the oldest allowed rows dropped first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sidecar.domain.decision_rows import COLUMN_NAMES, DecisionRow
from sidecar.stores.decisions.missing import Cause, MissingSpan
from sidecar.stores.decisions.parquet import csv_of

BUFFER_BYTES_MAX = 32 << 20
"""About 200,000 rows: 6 s of one core that does nothing but decide, and hours of an ordinary sidecar."""

_TIME, _WORKER = COLUMN_NAMES.index("time"), COLUMN_NAMES.index("worker")


class Chunk(NamedTuple):
    """Rows of one frame, either all allowed or all refused, as lines of `csv_of`."""

    text: bytes
    rows: int
    is_allowed: bool
    from_us: int
    to_us: int
    worker: int


def chunk_of(rows: Sequence[DecisionRow], is_allowed: bool) -> Chunk:
    """Return *rows*, at least one and all of one worker, as a chunk."""
    times = [int(row[_TIME]) for row in rows]
    return Chunk(csv_of(rows), len(rows), is_allowed, min(times), max(times), int(rows[0][_WORKER]))


class RowBuffer:
    """
    Chunks that are not on the disk yet.

    `take` lends all of them for a batch; until `written` or `put_back` they count as kept.
    """

    def __init__(self, bytes_max: int = BUFFER_BYTES_MAX) -> None:
        """Keep at most *bytes_max* of text."""
        self._bytes_max = bytes_max
        self._allowed: deque[Chunk] = deque()
        self._refused: deque[Chunk] = deque()
        self._taken: list[Chunk] = []
        self._bytes = 0
        self.rows = 0
        """Rows that wait for the next batch."""

    def add(self, chunks: Iterable[Chunk], cause: Cause = Cause.BUFFER_FULL) -> list[MissingSpan]:
        """Keep *chunks*; return what had to be dropped for them, because of *cause*."""
        for chunk in chunks:
            (self._allowed if chunk.is_allowed else self._refused).append(chunk)
            self._bytes += len(chunk.text)
            self.rows += chunk.rows
        return self._drop(cause)

    def take(self) -> list[Chunk]:
        """Lend all chunks for a batch."""
        self._taken = [*self._allowed, *self._refused]
        self._allowed.clear()
        self._refused.clear()
        self.rows = 0
        return self._taken

    def written(self) -> None:
        """The chunks lent by `take` are on the disk: forget them."""
        self._bytes -= sum(len(chunk.text) for chunk in self._taken)
        self._taken = []

    def put_back(self) -> list[MissingSpan]:
        """Keep the chunks lent by `take`, which could not be written; return what is dropped."""
        taken, self._taken = self._taken, []
        for chunk in reversed(taken):
            (self._allowed if chunk.is_allowed else self._refused).appendleft(chunk)
        self.rows += sum(chunk.rows for chunk in taken)
        return self._drop(Cause.DISK)

    def _drop(self, cause: Cause) -> list[MissingSpan]:
        dropped = []
        while self._bytes > self._bytes_max and (self._allowed or self._refused):
            chunk = (self._allowed or self._refused).popleft()
            self._bytes -= len(chunk.text)
            self.rows -= chunk.rows
            counts = (chunk.rows, 0) if chunk.is_allowed else (0, chunk.rows)
            dropped.append(MissingSpan(chunk.from_us, chunk.to_us, chunk.worker, *counts, cause))
        return dropped

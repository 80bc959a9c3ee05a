"""Rows that wait for the disk: bounded in bytes, the oldest allowed rows dropped first."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from sidecar.stores.decisions.lines import Lines
from sidecar.stores.decisions.missing import Cause, MissingSpan

BUFFER_BYTES_MAX = 32 << 20
"""About 140,000 rows: 4 s of one core that does nothing but decide, and hours of an ordinary sidecar."""


class Chunk(NamedTuple):
    """The rows of one frame of *worker*, either all allowed or all refused."""

    lines: Lines
    is_allowed: bool
    worker: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.lines.rows


class RowBuffer:
    """
    Chunks that are not on the disk yet.

    `take` lends all of them for a batch; until `written` or `put_back` they count as kept.
    """

    def __init__(self, bytes_max: int = BUFFER_BYTES_MAX) -> None:
        """Keep at most *bytes_max*."""
        self._bytes_max = bytes_max
        self._allowed: deque[Chunk] = deque()
        self._refused: deque[Chunk] = deque()
        self._taken: list[Chunk] = []
        self._bytes = 0
        self.rows = 0
        """Rows that wait for the next batch."""

    def add(self, chunk: Chunk) -> list[MissingSpan]:
        """Keep *chunk*; return what had to be dropped for it."""
        (self._allowed if chunk.is_allowed else self._refused).append(chunk)
        self._bytes += chunk.lines.size
        self.rows += chunk.rows
        return self._drop(Cause.BUFFER_FULL)

    def take(self) -> list[Chunk]:
        """Lend all chunks for a batch."""
        self._taken = [*self._allowed, *self._refused]
        self._allowed.clear()
        self._refused.clear()
        self.rows = 0
        return self._taken

    def written(self) -> None:
        """The chunks lent by `take` are on the disk: forget them."""
        self._bytes -= sum(chunk.lines.size for chunk in self._taken)
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
            self._bytes -= chunk.lines.size
            self.rows -= chunk.rows
            counts = (chunk.rows, 0) if chunk.is_allowed else (0, chunk.rows)
            dropped.append(MissingSpan(*chunk.lines.span_us, chunk.worker, *counts, cause))
        return dropped

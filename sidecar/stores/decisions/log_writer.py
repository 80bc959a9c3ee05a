"""
Writes frames to the folder of a decision log: batches, missing spans, and what a restarted writer must know.

No thread and no socket here: the process calls `receive` for each frame, `cut` for a batch, and `write` from
a thread. Before a batch is written, its `LogState` goes to the supervisor, which gives it to the next writer
if this one is killed. That writer sees by the batch's file which of the two accounts applies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.domain.decision_rows import DecisionRow
from sidecar.domain.path_masks import PathMasks
from sidecar.stores.decisions.accounts import Accounts, PendingSpans
from sidecar.stores.decisions.frames import read_frame
from sidecar.stores.decisions.lines import decision_rows, masked
from sidecar.stores.decisions.log_folder import LogFolder
from sidecar.stores.decisions.missing import Cause, MissingSpan, add_missing, read_missing
from sidecar.stores.decisions.parquet import write_lines
from sidecar.stores.decisions.row_buffer import Chunk, RowBuffer
from sidecar.stores.decisions.segments import Contents, Segment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class Totals(NamedTuple):
    """
    Rows since the start of the sidecar.

    `dropped` found no room in a buffer or on the disk, `lost` ended with a killed process, `sampled` were
    left out by `sample_allowed`.
    """

    written: int = 0
    dropped: int = 0
    lost: int = 0
    sampled: int = 0


class Progress(NamedTuple):
    """The accounts of what is on the disk, the processes that ended, and the totals."""

    accounts: Sequence[tuple[str, Sequence[Any]]] = ()
    ended: Sequence[str] = ()
    totals: Totals = Totals()


class LogState(NamedTuple):
    """
    What a writer reports to the supervisor before it writes batch `number` of `folder`, 0 = only `spans`.

    `after` is the progress once the batch is written, `before` is valid without it.
    """

    folder: str
    number: int
    before: Progress
    after: Progress
    spans: Sequence[MissingSpan] = ()

    def packed(self) -> bytes:
        """Return the state as a message."""
        return json.dumps(self).encode()

    @classmethod
    def read(cls, message: bytes) -> LogState:
        """Parse a message of `packed`."""
        folder, number, *progress, spans = json.loads(message)
        before, after = (Progress(accounts, ended, Totals(*totals)) for accounts, ended, totals in progress)
        return cls(folder, number, before, after, [MissingSpan(*span) for span in spans])


_NOTHING, _AT_START = Totals(), Progress()


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to write with their state; without chunks it has only spans."""

    state: LogState
    rows: int = 0
    chunks: Sequence[Chunk] = ()
    segment: Segment | None = None


@dataclass(slots=True)
class LogWriter:
    """
    The rows of one sidecar on their way to `folder`; None = they only go to `on_rows`.

    `on_rows` receives the rows of each frame as they arrive.
    """

    folder: LogFolder | None
    masks: PathMasks
    buffer: RowBuffer = field(default_factory=RowBuffer)
    accounts: Accounts = field(default_factory=Accounts)
    totals: Totals = _NOTHING
    on_rows: Callable[[Sequence[DecisionRow]], None] | None = None
    _pending: PendingSpans = field(default_factory=PendingSpans)
    _number: int = 0
    _before: Progress = _AT_START

    def restore(self, state: LogState | None) -> None:
        """
        Continue after a writer that ended with *state*; None = with a new supervisor.

        Raises:
            OSError: the folder cannot be read.
        """
        if self.folder is None:
            return
        folder = self.folder
        self._number = folder.next_number()
        if state is None:
            if folder.unclean is not None:
                self._pending.add([folder.unclean])
            return
        is_written = state.folder == folder.path.name and state.number < self._number
        if is_written:
            known = read_missing(folder.path)
            self._pending.add(s for s in state.spans if s._replace(sidecar=folder.path.name) not in known)
        self._before = state.after if is_written else state.before
        self.accounts = Accounts(self._before.accounts, self._before.ended)
        self.totals = self._before.totals

    def receive(self, message: bytes) -> None:
        """
        Add a frame.

        Raises:
            ValueError: *message* is not a frame.
        """
        frame = read_frame(message)
        self._note(self.accounts.receive(frame))
        lines = masked(frame.lines, self.masks) if self.masks else frame.lines
        if not lines.numbers:
            return
        if self.on_rows is not None:
            self.on_rows(decision_rows(lines))
        if self.folder is None:
            self._count(written=lines.rows)
            return
        self._note(self.buffer.add(Chunk(lines, frame.is_allowed, frame.worker)))

    def cut(self, is_ending: bool = False) -> Batch | None:
        """Return the next batch: the rows received so far and the spans that are due; None = nothing is."""
        if self.folder is None:
            return None
        spans = self._pending.due(is_ending)
        chunks = self.buffer.take()
        if not chunks and not spans:
            return None
        segment = None
        if chunks:
            starts_us, ends_us = zip(*(chunk.lines.span_us for chunk in chunks), strict=True)
            segment = Segment(Contents.ROWS, self._number, self._number, min(starts_us), max(ends_us))
        rows = sum(chunk.rows for chunk in chunks)
        totals = self.totals._replace(written=self.totals.written + rows)
        after = Progress(self.accounts.saved(), self.accounts.ended(), totals)
        state = LogState(self.folder.path.name, self._number if chunks else 0, self._before, after, spans)
        return Batch(state, rows, chunks, segment)

    def write(self, batch: Batch, connection: DuckDBPyConnection) -> None:
        """
        Write *batch*; for a thread.

        Raises:
            OSError: it could not be written; call `failed`.
        """
        assert self.folder is not None
        if batch.segment is not None:
            lines = [chunk.lines for chunk in batch.chunks]
            write_lines(self.folder.path, batch.segment, lines, connection)
        if batch.state.spans:
            add_missing(self.folder.path, batch.state.spans)

    def written(self, batch: Batch) -> None:
        """*batch* is on the disk."""
        self._rows_written(batch)
        self._pending.remove(batch.state.spans)

    def failed(self, batch: Batch) -> None:
        """
        *batch* could not be written completely: keep its rows for the next batch.

        Where only the spans failed, the rows are on the disk, and the spans stay.
        """
        assert self.folder is not None
        if batch.segment is not None and (self.folder.path / batch.segment.name).exists():
            self._rows_written(batch)
        else:
            self._note(self.buffer.put_back())

    def note_orphans(self, now_us: int) -> None:
        """Record that decisions may be missing of processes that ended, together with the supervisor."""
        self._pending.add(self.accounts.unknown(now_us))

    def _rows_written(self, batch: Batch) -> None:
        self.buffer.written()
        self._count(written=batch.rows)
        self._before = batch.state.after
        if batch.segment is not None:
            self._number += 1

    def _note(self, spans: Sequence[MissingSpan]) -> None:
        for span in spans:
            rows = span.allowed + span.refused
            if span.cause in (Cause.WORKER_ENDED, Cause.WRITER_ENDED):
                self._count(lost=rows)
            elif span.cause == Cause.SAMPLED:
                self._count(sampled=rows)
            else:
                self._count(dropped=rows)
        self._pending.add(spans)

    def _count(self, written: int = 0, dropped: int = 0, lost: int = 0, sampled: int = 0) -> None:
        added = (written, dropped, lost, sampled)
        self.totals = Totals(*(total + more for total, more in zip(self.totals, added, strict=True)))

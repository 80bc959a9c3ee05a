"""
Spans of time in which rows of a decision log are missing, one JSON object a line in `missing.jsonl`.

A reader states these spans, so that a log with gaps is never taken for a complete log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from sidecar.stores.decisions.segments import FILE_MODE

MISSING_FILE = "missing.jsonl"

SPANS_MAX = 10_000
"""Spans that are kept and read; beyond that, the oldest are merged into one span."""


class Cause(StrEnum):
    """Why rows are missing."""

    BUFFER_FULL = "buffer_full"
    """A worker or the writer had no room for more rows."""
    DISK = "disk"
    """The rows could not be written to the disk."""
    WORKER_ENDED = "worker_ended"
    """A worker was killed before it handed its rows over."""
    WRITER_ENDED = "writer_ended"
    """The writer was killed before it wrote its rows."""
    SAMPLED = "sampled"
    """`decision_log.sample_allowed` leaves out a share of the allowed requests."""


class MissingSpan(NamedTuple):
    """
    Rows that are missing from *from_us* to *to_us*, both included, in µs since the epoch.

    `worker` -1 = every worker. `allowed` and `refused` are numbers of rows, -1 = unknown. `sidecar` is the
    name of the folder, which the file itself does not hold.
    """

    from_us: int
    to_us: int
    worker: int
    allowed: int
    refused: int
    cause: str
    sidecar: str = ""

    def overlaps(self, from_us: int, to_us: int) -> bool:
        """Whether a row from *from_us* to *to_us*, both included, may be missing."""
        return self.from_us <= to_us and from_us <= self.to_us

    def line(self) -> str:
        """Return the line of the file."""
        fields = self._asdict()
        del fields["sidecar"]
        return json.dumps(fields) + "\n"


def read_missing(folder: Path) -> list[MissingSpan]:
    """
    Return the spans of one sidecar's *folder*, in the order in which they were recorded; [] without a file.

    A line that was not written completely is skipped: its writer records the span again.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        lines = (folder / MISSING_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    parsed = (_parse(line, folder.name) for line in lines)
    return [span for span in parsed if span is not None]


def add_missing(folder: Path, spans: Iterable[MissingSpan]) -> None:
    """
    Append *spans* to the file of *folder*, and wait until they are on the disk.

    Raises:
        OSError: the file cannot be written.
    """
    text = "".join(span.line() for span in spans).encode()
    fd = os.open(folder / MISSING_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # the rest of a line that a killed writer began
                text = b"\n" + text
        written = file.write(text)
        if written != len(text):
            raise OSError(f"{folder / MISSING_FILE}: only {written} of {len(text)} bytes written")
        os.fsync(fd)


def trim_missing(folder: Path, before_us: int) -> None:
    """
    Drop the spans that ended before *before_us*, and merge the oldest beyond `SPANS_MAX` into one.

    Raises:
        OSError: the file cannot be read or replaced; it stays as it is.
    """
    spans = read_missing(folder)
    kept = sorted((span for span in spans if span.to_us >= before_us), key=lambda span: span.from_us)
    if len(kept) > SPANS_MAX:
        cut = len(kept) - SPANS_MAX // 2
        kept = [merged(kept[:cut]), *kept[cut:]]
    if len(kept) == len(spans):
        return
    temporary = folder / f".writing-{MISSING_FILE}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(span.line() for span in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / MISSING_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def merged(spans: list[MissingSpan]) -> MissingSpan:
    """
    Return one span with all rows of *spans*, at least one.

    >>> merged([MissingSpan(1, 2, 0, 5, 0, "disk"), MissingSpan(4, 9, 1, 1, -1, "disk")])
    MissingSpan(from_us=1, to_us=9, worker=-1, allowed=6, refused=-1, cause='disk', sidecar='')
    """
    workers, causes = {span.worker for span in spans}, {span.cause for span in spans}
    allowed, refused = [span.allowed for span in spans], [span.refused for span in spans]
    return MissingSpan(
        min(span.from_us for span in spans),
        max(span.to_us for span in spans),
        workers.pop() if len(workers) == 1 else -1,
        -1 if -1 in allowed else sum(allowed),
        -1 if -1 in refused else sum(refused),
        causes.pop() if len(causes) == 1 else "several",
        spans[0].sidecar,
    )


_NUMBERS = ("from_us", "to_us", "worker", "allowed", "refused")


def _parse(line: str, sidecar: str) -> MissingSpan | None:
    try:
        fields = json.loads(line)
        from_us, to_us, worker, allowed, refused = (int(fields[name]) for name in _NUMBERS)
        return MissingSpan(from_us, to_us, worker, allowed, refused, str(fields["cause"]), sidecar)
    except (ValueError, TypeError, KeyError):
        return None

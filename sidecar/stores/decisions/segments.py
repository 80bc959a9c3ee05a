"""
The files of a decision log, by name.

    DIR/<sidecar>/rows-<first>-<last>-<from>-<to>.parquet       rows, sorted by integration and time if merged
    DIR/<sidecar>/rollup-<first>-<last>-<from>-<to>.parquet     counts of the same rows
    DIR/<sidecar>/ids-<first>-<last>-<from>-<to>.parquet        hashes of ids in the same rows, of large files
    DIR/<sidecar>/missing.jsonl                                 spans of time in which rows were dropped

A sidecar numbers its batches 1, 2, 3 …; `first` and `last` are the numbers of a file's batches, `from` and
`to` the times of its first and last row in µs since the epoch. A compacted file replaces the files whose
batches it contains. The name alone says so, therefore a crash between its rename and their removal leaves no
duplicate rows, and no manifest can disagree with the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

FILE_MODE = 0o640
"""The mode of every file: the log has addresses of clients, so only the owner and the group may read it."""

_NAME = re.compile(r"(rows|rollup|ids)-(\d{10})-(\d{10})-(\d{16})-(\d{16})\.parquet")


class Contents(StrEnum):
    """What a file holds."""

    ROWS = "rows"
    ROLLUP = "rollup"
    IDS = "ids"


class Segment(NamedTuple):
    """A file of a decision log: the batches *first* to *last*, with rows from *from_us* to *to_us*."""

    contents: Contents
    first: int
    last: int
    from_us: int
    to_us: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.contents}-{self.first:010}-{self.last:010}-{self.from_us:016}-{self.to_us:016}.parquet"

    def contains(self, other: Segment) -> bool:
        """Whether this file has all batches of *other*."""
        return self.contents is other.contents and self.first <= other.first and other.last <= self.last

    def overlaps(self, from_us: int, to_us: int) -> bool:
        """Whether a row may be in the span from *from_us* to *to_us*, both included."""
        return self.from_us <= to_us and from_us <= self.to_us


def parse_name(name: str) -> Segment | None:
    """Return the segment that *name* describes; None = not a file of a decision log, or not complete."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    contents, *numbers = match.groups()
    return Segment(Contents(contents), *map(int, numbers))


def current(segments: Iterable[Segment]) -> Iterator[Segment]:
    """
    Yield the segments that no other one replaces, by their batches.

    >>> one, two = (Segment(Contents.ROWS, n, n, 0, 0) for n in (1, 2))
    >>> [(s.first, s.last) for s in current([one, two, Segment(Contents.ROWS, 1, 2, 0, 0)])]
    [(1, 2)]
    """
    last = dict.fromkeys(Contents, 0)
    for segment in sorted(segments, key=lambda segment: (segment.contents, segment.first, -segment.last)):
        if segment.last > last[segment.contents]:
            last[segment.contents] = segment.last
            yield segment


def segments_of(folder: Path) -> list[Segment]:
    """
    Return the current segments of one sidecar's folder.

    Raises:
        OSError: *folder* cannot be read.
    """
    parsed = (parse_name(path.name) for path in folder.iterdir())
    return list(current(segment for segment in parsed if segment is not None))

"""
Frames: how a worker hands decisions to the process that writes them.

A frame is one message of a socket that keeps message borders. Both ends are processes of one sidecar, so the
serialization is Python's own, the fastest.
"""

from __future__ import annotations

import marshal
from enum import IntEnum
from typing import NamedTuple

from sidecar.stores.decisions.lines import BYTES_MAX, Lines

FRAME_BYTES_MAX = BYTES_MAX + (8 << 10)
"""The longest frame: a socket refuses messages that exceed its buffer, by default 208 KiB on Linux."""


class Counts(NamedTuple):
    """
    Numbers of decisions of one process since its start.

    `allowed` and `refused` were sent as rows; `dropped_allowed` and `dropped_refused` found no room;
    `sampled` are allowed requests that `sample_allowed` left out.
    """

    allowed: int = 0
    refused: int = 0
    dropped_allowed: int = 0
    dropped_refused: int = 0
    sampled: int = 0


class Kind(IntEnum):
    """What a frame is."""

    ROWS = 0
    """One of many."""
    LAST = 1
    """The last one of its process, which is about to end: it has sent everything."""
    ENDED = 2
    """From the supervisor: the process has ended; `allowed` and `refused` count all decisions of its life."""


class Frame(NamedTuple):
    """
    Rows of one process, all allowed or all refused, and its counts including these rows.

    `process` is the unique name of the process, `sent_us` the time of sending; every decision before
    `settled_us` is in `counts`.
    """

    worker: int
    process: str
    sent_us: int
    settled_us: int
    counts: Counts
    lines: Lines = Lines()
    is_allowed: bool = True
    kind: Kind = Kind.ROWS

    @property
    def rows(self) -> tuple[int, int]:
        """The numbers of allowed and refused rows."""
        return (self.lines.rows, 0) if self.is_allowed else (0, self.lines.rows)

    def packed(self) -> bytes:
        """Return the message."""
        worker, process, sent_us, settled_us, counts, lines, is_allowed, kind = self
        return marshal.dumps(
            (worker, process, sent_us, settled_us, tuple(counts), tuple(lines), is_allowed, int(kind))
        )


def read_frame(message: bytes) -> Frame:
    """
    Parse a message of `Frame.packed`.

    Raises:
        ValueError: it is not a frame.
    """
    try:
        worker, process, sent_us, settled_us, counts, lines, is_allowed, kind = marshal.loads(message)  # noqa: S302
        return Frame(
            worker, process, sent_us, settled_us, Counts(*counts), Lines(*lines), is_allowed, Kind(kind)
        )
    except (EOFError, TypeError, ValueError) as error:
        raise ValueError(f"not a frame of {len(message)} bytes: {error}") from error

"""
Rows of the decision log on their way to the files: lines of text, and an array of numbers.

A deciding process makes them of what it has: it joins texts and copies numbers, and formats neither. DuckDB
reads both as they are (see `parquet`), so that no Python runs for each row.

A line is a record of CSV in which no value needs quotes: `SEPARATOR` precedes each value, and values have
printable characters only. `pack_lines` confirms that by one look at all lines together.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sidecar.domain.decision_rows import COLUMN_NAMES, SEPARATOR, DecisionRow, printable
from sidecar.domain.path_masks import PathMasks

PIECES = (
    ("decision_id",),
    ("request_id",),
    ("trace_id",),
    ("integration", "credential", "generation"),
    ("verdict", "reason"),
    ("would_deny",),
    ("method",),
    ("path",),
    ("scope", "route"),
    ("client_address",),
    ("dialect",),
    ("fallback",),
)
"""
The texts of a row in their order; what one text has several columns of was made by `decision_rows.joined`.
The path may have a query. The last text ends with `END`.
"""
CLIENT_PIECES = tuple(PIECES.index((name,)) for name in ("request_id", "trace_id", "method", "path"))
"""The texts that clients choose; all others are printable."""
END = "\n"

NUMBERS = (
    "time",
    "remaining",
    "limit_rpm",
    "reset_at",
    "store_time",
    "retry_after_us",
    "latency_us",
    "worker",
)
"""The numbers of a row, 64 bits each: `time` and `latency_us` in ns, the other times in µs."""

LINE_COLUMNS = tuple(name for piece in PIECES for name in piece)
"""The columns of a line, after an empty one."""

LATENCY_US_MAX = 2**31 - 1
"""Longer latencies are recorded as this."""

BYTES_MAX = 120 << 10
"""Lines and numbers that are packed together."""

_SEPARATORS = len(LINE_COLUMNS)
_PRINTABLE_ASCII = bytes(range(0x20, 0x7F))
_NUMBER_BYTES = 8
_ROW_BYTES = _NUMBER_BYTES * len(NUMBERS)
_PATH = 1 + LINE_COLUMNS.index("path")


class Lines(NamedTuple):
    """Rows of one process in the order of their decisions; `text` is UTF-8, `numbers` in native order."""

    text: bytes = b""
    numbers: bytes = b""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.numbers) // _ROW_BYTES

    @property
    def size(self) -> int:
        """The bytes that they occupy."""
        return len(self.text) + len(self.numbers)

    @property
    def first_us(self) -> int:
        """The time of the first row, of at least one."""
        return int.from_bytes(self.numbers[:_NUMBER_BYTES], sys.byteorder) // 1_000

    @property
    def span_us(self) -> tuple[int, int]:
        """The earliest and the latest time of at least one row; clocks may step back."""
        times_ns = array("q", self.numbers)[:: len(NUMBERS)]
        return min(times_ns) // 1_000, max(times_ns) // 1_000


def pack_lines(texts: list[str], numbers: list[int]) -> Iterator[Lines]:
    """
    Yield the rows of *texts* (`PIECES` of each row) and *numbers* (`NUMBERS` of each row), at least one row.

    Rows that exceed BYTES_MAX together are yielded in parts. Characters of clients' texts that are not
    printable become U+FFFD; *texts* changes.
    """
    lines = Lines(_text(texts, len(numbers) // len(NUMBERS)), array("q", numbers).tobytes())
    if lines.size <= BYTES_MAX or lines.rows == 1:
        yield lines
        return
    half = lines.rows // 2
    yield from pack_lines(texts[: half * len(PIECES)], numbers[: half * len(NUMBERS)])
    yield from pack_lines(texts[half * len(PIECES) :], numbers[half * len(NUMBERS) :])


def _text(texts: list[str], rows: int) -> bytes:
    text = f"{SEPARATOR}{SEPARATOR.join(texts)}".encode("utf-8", "surrogatepass")
    # Besides printable ASCII, there are the separators and ends of the rows, and nothing else?
    if len(text.translate(None, _PRINTABLE_ASCII)) == rows * (_SEPARATORS + 1):
        return text
    for place in CLIENT_PIECES:
        texts[place :: len(PIECES)] = map(printable, texts[place :: len(PIECES)])
    return f"{SEPARATOR}{SEPARATOR.join(texts)}".encode()


def decision_rows(lines: Lines) -> list[DecisionRow]:
    """Return *lines* as rows in memory; the same as `parquet.write_lines` writes."""
    numbers = array("q", lines.numbers)
    width = len(NUMBERS)
    return [
        _row(line, numbers[number * width : number * width + width])
        for number, line in enumerate(lines.text.decode().split(END)[:-1])
    ]


def _row(line: str, numbers: Sequence[int]) -> DecisionRow:
    values: dict[str, str | int] = dict(zip(LINE_COLUMNS, line.split(SEPARATOR)[1:], strict=True))
    values |= zip(NUMBERS, numbers, strict=True)
    values["time"] = numbers[0] // 1_000
    values["path"] = str(values["path"]).partition("?")[0]
    values["generation"] = int(values["generation"])
    values["latency_us"] = min(int(values["latency_us"]) // 1_000, LATENCY_US_MAX)
    return tuple(values[name] for name in COLUMN_NAMES)


def masked(lines: Lines, masks: PathMasks) -> Lines:
    """Return *lines* with paths without query, masked by *masks*."""
    masked_lines = []
    for line in lines.text.decode().split(END)[:-1]:
        values = line.split(SEPARATOR)
        values[_PATH] = masks.apply(values[_PATH].partition("?")[0])
        masked_lines.append(SEPARATOR.join(values) + END)
    return lines._replace(text="".join(masked_lines).encode())

"""
Metrics whose series are named by the configuration in force: rows of labels and counts.

A row stores the text of its labels and its counts in the same flat array as all other counts, so that a
supervisor can read the rows of its workers from shared memory. Labels come only from configured rules, never
from a caller. The number of rows is fixed: all labels beyond it share the last row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from typing import TypeAlias

NAME_WORDS = 32
"""Number of 8-byte words for the labels of a row: 2 bytes for their length, then the text."""
WORD_BYTES = 8
TEXT_BYTES_MAX = NAME_WORDS * WORD_BYTES - 2
DIGEST_CHARS = 12
OTHER_ROW = "(other)"
"""The labels of the last row, which counts all series for which there is no row."""

Row: TypeAlias = "tuple[str, ...]"
Words: TypeAlias = "Sequence[int] | memoryview"


def packed_name(labels: Row) -> list[int]:
    """Encode *labels* as words; a text that is too long is cut and ends with a hash."""
    text = "\0".join(labels).encode(errors="replace")
    if len(text) > TEXT_BYTES_MAX:
        digest = hashlib.sha256(text).hexdigest()[:DIGEST_CHARS].encode()
        # Cut between characters, and keep the number of separators.
        cut = text[: TEXT_BYTES_MAX - DIGEST_CHARS - len(labels)].decode(errors="ignore").encode()
        text = cut + b"\0" * (len(labels) - 1 - cut.count(b"\0")) + b"~" + digest
    block = (len(text).to_bytes(2, "little") + text).ljust(NAME_WORDS * WORD_BYTES, b"\0")
    return [
        int.from_bytes(block[at : at + WORD_BYTES], "little", signed=True)
        for at in range(0, len(block), WORD_BYTES)
    ]


def unpacked_name(words: Words) -> Row:
    """Decode labels from *words*."""
    block = b"".join(word.to_bytes(WORD_BYTES, "little", signed=True) for word in words)
    length = int.from_bytes(block[:2], "little")
    return tuple(block[2 : 2 + length].decode(errors="replace").split("\0"))


class RowTable:
    """The rows of one metric: *rows_max* rows of *counts* counts each, starting at word *first*."""

    __slots__ = ("counts", "first", "rows_max", "width")

    def __init__(self, first: int, rows_max: int, counts: int) -> None:
        self.first = first
        self.rows_max = rows_max
        self.counts = counts
        self.width = NAME_WORDS + counts

    @property
    def size(self) -> int:
        """Number of words of all rows."""
        return self.rows_max * self.width

    def find(self, values: memoryview, labels: Row) -> int:
        """The slot of the first count of the row with *labels*, which is added if it is new."""
        name = packed_name(labels)
        for row in range(self.rows_max - 1):
            at = self.first + row * self.width
            if not values[at]:
                self._put(values, at, name)
            if values[at] == name[0] and values[at : at + NAME_WORDS].tolist() == name:
                return at + NAME_WORDS
        at = self.first + (self.rows_max - 1) * self.width
        if not values[at]:
            self._put(values, at, packed_name((OTHER_ROW,) * len(labels)))
        return at + NAME_WORDS

    def _put(self, values: memoryview | MutableSequence[int], at: int, name: Sequence[int]) -> None:
        """Write a name, its first word last, so that a concurrent reader never sees a partial name."""
        for offset in reversed(range(NAME_WORDS)):
            values[at + offset] = name[offset]

    def read(self, values: Words) -> dict[Row, list[int]]:
        """Return the counts of every row by its labels."""
        rows: dict[Row, list[int]] = {}
        for row in range(self.rows_max):
            at = self.first + row * self.width
            if values[at]:
                end = at + self.width
                rows[unpacked_name(values[at : at + NAME_WORDS])] = list(values[at + NAME_WORDS : end])
        return rows

    def write(self, values: MutableSequence[int], rows: Mapping[Row, Sequence[int]]) -> None:
        """Write *rows* into *values*, as far as there is room."""
        for row, (labels, counts) in enumerate(list(rows.items())[: self.rows_max]):
            at = self.first + row * self.width
            self._put(values, at, packed_name(labels))
            for offset, count in enumerate(counts):
                values[at + NAME_WORDS + offset] = count


def added(sources: Iterable[Mapping[Row, Sequence[int]]]) -> dict[Row, list[int]]:
    """Merge the rows of all *sources*, adding up the counts of rows with the same labels."""
    total: dict[Row, list[int]] = {}
    for rows in sources:
        for labels, counts in rows.items():
            found = total.setdefault(labels, [0] * len(counts))
            for index, count in enumerate(counts):
                found[index] += count
    return total

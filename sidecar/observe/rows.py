"""
Metrics whose series are named by the configuration in force: rows of labels and counts.

A row stores the text of its labels and its counts in the same flat array as all other counts, so that a
supervisor can read the rows of its workers from shared memory. Labels come only from configured rules, never
from a caller. The number of rows is fixed: all labels beyond it share the last row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

NAME_WORDS = 32
"""Number of 8-byte words for the labels of a row: 2 bytes for their length, then the text."""
WORD_BYTES = 8
TEXT_BYTES_MAX = NAME_WORDS * WORD_BYTES - 2
DIGEST_CHARS = 12
OTHER_ROW = "(other)"
"""The labels of the last row, which counts all series for which there is no row."""

Row: TypeAlias = "tuple[str, ...]"
Rows: TypeAlias = "Mapping[Row, Sequence[int]]"
"""The counts of each row, by its labels."""


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


def unpacked_name(words: memoryview) -> Row:
    """The labels that *words* hold."""
    block = words.tobytes()
    length = int.from_bytes(block[:2], "little")
    return tuple(block[2 : 2 + length].decode(errors="replace").split("\0"))


class RowTable:
    """The place of one metric's rows: *rows_max* rows of *counts* counts each, from word *first* on."""

    __slots__ = ("_width", "first", "rows_max", "size")

    def __init__(self, first: int, rows_max: int, counts: int) -> None:
        self.first = first
        self.rows_max = rows_max
        self._width = NAME_WORDS + counts
        self.size = rows_max * self._width
        """Words of all rows."""

    def slot(self, number: int) -> int:
        """The slot of the first count of the *number*-th row."""
        return self.first + number * self._width + NAME_WORDS

    def clear(self, values: memoryview, number: int) -> None:
        """Take the labels and the counts of the *number*-th row away; the labels first, see `read`."""
        at = self.first + number * self._width
        for offset in range(self._width):
            values[at + offset] = 0

    def name(self, values: memoryview, number: int, labels: Row) -> int:
        """
        Give the *number*-th row its *labels*; return the slot of its first count.

        Without room for a further row it is the last one, which has separate labels.
        """
        if number >= self.rows_max - 1:
            number, labels = self.rows_max - 1, (OTHER_ROW,) * len(labels)
        at = self.first + number * self._width
        if not values[at]:
            # The first word is written last, so that a concurrent reader never finds half of a name.
            for offset, word in reversed(list(enumerate(packed_name(labels)))):
                values[at + offset] = word
        return at + NAME_WORDS

    def read(self, values: memoryview) -> dict[Row, list[int]]:
        """Every row with its counts, but those that their process hands over meanwhile."""
        rows: dict[Row, list[int]] = {}
        for at in range(self.first, self.first + self.size, self._width):
            if values[at]:
                words = values[at : at + NAME_WORDS]
                before = words.tobytes()
                counts = values[at + NAME_WORDS : at + self._width].tolist()
                if words.tobytes() == before:
                    rows[unpacked_name(words)] = counts
        return rows


def added(sources: Iterable[Rows]) -> dict[Row, list[int]]:
    """Merge the rows of all *sources*, adding up the counts of rows with the same labels."""
    total: dict[Row, list[int]] = {}
    for rows in sources:
        for labels, counts in rows.items():
            found = total.setdefault(labels, [0] * len(counts))
            for index, count in enumerate(counts):
                found[index] += count
    return total

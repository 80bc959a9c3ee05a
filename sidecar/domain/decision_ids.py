"""Decision ids, unique in the fleet."""

from __future__ import annotations

import re
import secrets
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
DECISION_ID_LENGTH: Final = 22
DECISION_ID: Final = re.compile(f"[0-9a-z]{{{DECISION_ID_LENGTH}}}")
_PROCESS_ID: Final = re.compile("[0-9a-z]{10}")
_LAST_DIGITS: Final = [f"{number:02x}" for number in range(256)]


class DecisionIds:
    """
    Generates unique decision ids, each `DECISION_ID_LENGTH` characters of [0-9a-z].

    Ten random characters of the process (50 bits) and a counter of twelve hexadecimal digits: unique in the
    fleet, and ordered within a process.
    """

    __slots__ = ("_head", "_head_of_256", "_next")

    def __init__(self, process_id: str | None = None) -> None:
        """
        Start at 0; *process_id* replaces the random part in tests.

        Raises:
            ValueError: *process_id* has another form.
        """
        if process_id is not None and not _PROCESS_ID.fullmatch(process_id):
            raise ValueError(f"process id is {process_id!r}; it must be ten characters of 0-9 and a-z")
        self._head = process_id or "".join(secrets.choice(_ALPHABET) for _ in range(10))
        self._head_of_256 = ""
        self._next = 0

    def __call__(self) -> str:
        """Return the next id."""
        number = self._next
        self._next = number + 1
        last = number & 0xFF
        if last == 0:
            self._head_of_256 = f"{self._head}{number >> 8:010x}"
        return self._head_of_256 + _LAST_DIGITS[last]

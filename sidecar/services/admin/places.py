"""Bounds on calls that run at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.services.admin.problems import ApiCode, retry_error

CALLS_MAX = 128
"""Calls in hand. Callers without a token hold a place only while it is looked up."""
LONG_CALLS_MAX = 32
"""Of these, calls that may take minutes: that wait for other sidecars, export or verify."""


class Places:
    """So many calls at a time; a further one is refused at once rather than kept waiting."""

    __slots__ = ("_count_max", "count")

    def __init__(self, count_max: int) -> None:
        """Have *count_max* places."""
        self._count_max = count_max
        self.count = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """
        Hold a place.

        Raises:
            ProblemError: overloaded.
        """
        if self.count >= self._count_max:
            raise retry_error(
                ApiCode.OVERLOADED,
                f"{self._count_max} such calls are in hand already; nothing was done: try again",
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

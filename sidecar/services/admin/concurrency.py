"""Bounds on calls that run at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.services.admin.problems import ApiCode, retry_error

CALLS_MAX = 128
"""Concurrent calls with a valid token; those without have places of their own in the HTTP server."""
LONG_CALLS_MAX = 32
"""Of these, calls that may take minutes: those that wait for other sidecars, export or verify."""


class CallLimit:
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
                f"too many concurrent requests (limit {self._count_max}); nothing was changed; retry later",
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

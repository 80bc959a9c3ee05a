"""Limits the number of concurrent calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.services.admin.problems import ApiCode, retry_error

CALLS_MAX = 128
"""Concurrent calls with a valid token; the HTTP server limits those without one."""
LONG_CALLS_MAX = 32
"""Concurrent calls that may take minutes: those that wait for other sidecars, export, verify or apply."""


class CallLimit:
    """A limit on concurrent calls; further calls are refused at once."""

    __slots__ = ("_count_max", "count")

    def __init__(self, count_max: int) -> None:
        """Allow *count_max* concurrent calls."""
        self._count_max = count_max
        self.count = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """
        Count one call as running.

        Raises:
            ProblemError: too many calls are running.
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

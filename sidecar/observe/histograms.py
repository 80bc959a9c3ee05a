"""Records observations into the histograms of the metrics."""

from __future__ import annotations

from bisect import bisect_left


class HistogramRecorder:
    """Adds observations in nanoseconds to one histogram series."""

    __slots__ = ("_bounds", "_first", "_sum", "_values")

    def __init__(self, values: memoryview, first: int, bounds: tuple[int, ...]) -> None:
        """Write to *values* from slot *first*: one slot per bucket, one for infinity, one for the sum."""
        self._values = values
        self._first = first
        self._bounds = bounds
        self._sum = first + len(bounds) + 1

    def observe_ns(self, duration_ns: int, count: int = 1) -> None:
        """Count *count* observations of one duration; the bounds of buckets are inclusive."""
        self._values[self._first + bisect_left(self._bounds, duration_ns)] += count
        self._values[self._sum] += duration_ns * count

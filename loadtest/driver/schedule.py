"""When calls are due: rates that change over time, and arrivals at random or at equal distances."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """A stretch of the load: its length, and its rate at both ends; the rate changes linearly."""

    length_s: float
    first_per_s: float
    last_per_s: float

    @property
    def calls(self) -> float:
        """The expected number of calls."""
        return self.length_s * (self.first_per_s + self.last_per_s) / 2

    def time_of(self, calls: float) -> float:
        """Return when *calls* are expected to be due, in seconds since the start of the segment."""
        slope = (self.last_per_s - self.first_per_s) / self.length_s
        if abs(slope) < 1e-9:
            return calls / self.first_per_s
        root = math.sqrt(max(0.0, self.first_per_s**2 + 2 * slope * calls))
        return (root - self.first_per_s) / slope


def segments_of(shape: str, seconds: float, rate: float, peak: float, steps: int) -> list[Segment]:
    """
    Return the segments of *shape*: constant, soak, ramp, step or spike.

    `constant` and `soak` hold *rate*; `ramp` rises from *rate* to *peak* linearly, `step` in *steps* equal
    stairs; `spike` holds *peak* in the middle fifth.

    >>> segments_of("spike", 10.0, 100.0, 500.0, 1)[1]
    Segment(length_s=2.0, first_per_s=500.0, last_per_s=500.0)
    """
    if shape == "ramp":
        return [Segment(seconds, rate, peak)]
    if shape == "step":
        rise = (peak - rate) / max(1, steps - 1)
        rates = [rate + rise * step for step in range(steps)]
        return [Segment(seconds / steps, stair, stair) for stair in rates]
    if shape == "spike":
        before = Segment(seconds * 0.4, rate, rate)
        return [before, Segment(seconds * 0.2, peak, peak), before]
    return [Segment(seconds, rate, rate)]


def rate_at(segments: Sequence[Segment], at_s: float) -> float:
    """Return the rate at *at_s* seconds since the start; 0 after the end."""
    for segment in segments:
        if at_s < segment.length_s:
            share = at_s / segment.length_s
            return segment.first_per_s + share * (segment.last_per_s - segment.first_per_s)
        at_s -= segment.length_s
    return 0.0


def due_times_ns(
    segments: Sequence[Segment], arrivals: str, seed: int, part: int = 0, parts: int = 1
) -> Iterator[int]:
    """
    Yield when each call is due, in nanoseconds since the start, in order.

    *arrivals* is `poisson` or `uniform`. *part* of *parts* is one driver process's share; the shares of all
    processes together are the load.
    """
    source = random.Random(seed * 1_000 + part)
    wait = _poisson(source) if arrivals == "poisson" else _uniform(part / parts)
    started_s, reached, next_call = 0.0, 0.0, next(wait)
    for segment in segments:
        share = Segment(segment.length_s, segment.first_per_s / parts, segment.last_per_s / parts)
        while next_call - reached < share.calls:
            yield int((started_s + share.time_of(next_call - reached)) * 1e9)
            next_call += next(wait)
        reached += share.calls
        started_s += share.length_s


def _poisson(source: random.Random) -> Iterator[float]:
    while True:
        yield source.expovariate(1.0)


def _uniform(offset: float) -> Iterator[float]:
    yield offset
    while True:
        yield 1.0

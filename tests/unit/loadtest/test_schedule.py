"""When calls are due: the shapes, both kinds of arrivals, and the shares of several processes."""

from __future__ import annotations

from bisect import bisect
from itertools import pairwise

import pytest

from loadtest.driver.schedule import Segment, due_times_ns, rate_at, segments_of

SHAPES = {
    "constant": 100.0 * 10,
    "soak": 100.0 * 10,
    "ramp": (100 + 500) / 2 * 10,
    "step": (100 + 300 + 500) / 3 * 10,
    "spike": 100 * 8 + 500 * 2,
}


def times_s(shape: str, arrivals: str, seed: int = 1, part: int = 0, parts: int = 1) -> list[float]:
    """When the calls of a shape of ten seconds are due."""
    segments = segments_of(shape, 10.0, 100.0, 500.0, 3)
    return [time_ns / 1e9 for time_ns in due_times_ns(segments, arrivals, seed, part, parts)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arrivals", ["uniform", "poisson"])
def test_schedule__a_shape_has_its_number_of_calls_in_order(shape: str, arrivals: str) -> None:
    """Uniform arrivals are exact; random ones are within five standard deviations."""
    found = times_s(shape, arrivals)
    assert found == sorted(found)
    assert found[0] >= 0 and found[-1] <= 10
    tolerance = 1 if arrivals == "uniform" else 5 * SHAPES[shape] ** 0.5
    assert len(found) == pytest.approx(SHAPES[shape], abs=tolerance)


def test_schedule__uniform_arrivals_are_equally_far_apart() -> None:
    """A constant rate of 100 a second is one call every ten milliseconds."""
    assert {round(after - before, 6) for before, after in pairwise(times_s("constant", "uniform"))} == {0.01}


def test_schedule__a_ramp_rises() -> None:
    """The call number that is due at half the time follows from the integral of the rate."""
    found = times_s("ramp", "uniform")
    assert bisect(found, 5.0) == pytest.approx(100 * 5 + (500 - 100) / 10 * 25 / 2, abs=1)


def test_schedule__a_seed_repeats_and_another_one_does_not() -> None:
    """A run can be repeated exactly."""
    assert times_s("spike", "poisson", 7) == times_s("spike", "poisson", 7)
    assert times_s("spike", "poisson", 7) != times_s("spike", "poisson", 8)


@pytest.mark.parametrize("arrivals", ["uniform", "poisson"])
def test_schedule__processes_share_the_load(arrivals: str) -> None:
    """The shares of four processes add up to the whole; uniform shares interleave."""
    shares = [times_s("constant", arrivals, part=part, parts=4) for part in range(4)]
    whole = sorted(time_s for share in shares for time_s in share)
    assert len(whole) == pytest.approx(1_000, abs=1 if arrivals == "uniform" else 160)
    if arrivals == "uniform":
        assert {round(after - before, 6) for before, after in pairwise(whole)} == {0.01}


def test_schedule__the_rate_at_a_time() -> None:
    """Within a segment the rate changes linearly; after the end it is 0."""
    segments = [Segment(10.0, 100.0, 200.0), Segment(5.0, 50.0, 50.0)]
    assert [rate_at(segments, at_s) for at_s in (0.0, 5.0, 12.0, 15.0)] == [100.0, 150.0, 50.0, 0.0]

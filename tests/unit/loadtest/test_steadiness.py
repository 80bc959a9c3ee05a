"""What is said of the machine that a benchmark ran on."""

from __future__ import annotations

from loadtest.bench.steadiness import Steadiness, steadiness_of


def test_steadiness__slow_time_is_counted_as_time_and_a_stop_by_what_it_adds() -> None:
    """Ten of 100 pieces took twice as long, one stopped for 9.9 ms: shares are of the time."""
    pieces_ns = [100_000] * 89 + [200_000] * 10 + [10_000_000]
    found = steadiness_of(pieces_ns)
    all_ns = 8_900_000 + 2_000_000 + 10_000_000
    assert found == Steadiness(12_000_000 / all_ns, 12_000_000 / all_ns, 9.9)


def test_steadiness__a_steady_core_is_never_slow() -> None:
    """Small differences are none."""
    assert steadiness_of([100_000, 105_000, 109_000] * 10) == Steadiness(0.0, 0.0, 0.009)

"""Results: percentiles, the driver's own limit, the knee of a sweep, comparisons, and pages that say it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram

from loadtest.harness.compare import compare, differences
from loadtest.harness.oracle import Admission, Fault, Verdict
from loadtest.harness.pages import comparison_page, run_page, sweep_page
from loadtest.harness.results import Collected, as_result, driver_limit, percentiles_us
from loadtest.harness.scenario import Scenario
from loadtest.harness.sweep import knee_of, rows_of
from loadtest.harness.tally import Second

SECONDS = 10


def scenario(rate_per_s: float = 100.0, loop: str = "open") -> Scenario:
    """A scenario of ten seconds without a warm-up."""
    load = {"rate_per_s": rate_per_s, "duration_s": SECONDS, "warm_up_s": 0, "loop": loop}
    return Scenario(name="example", load=load)


def collected(latency_us: int, lag_us: int = 0, rate_per_s: int = 100, warm_up_s: float = 0.0) -> Collected:
    """Ten seconds in which each call has the same latency, except for the slowest one of each second."""
    found = Collected(warm_up_s)
    for number in range(SECONDS):
        latencies = Counter({latency_us: rate_per_s - 1, 10 * latency_us: 1})
        lags = Counter({lag_us: rate_per_s})
        found.add({number: Second(Counter({(0, 200): rate_per_s}), latencies, lags)})
    return found


def result(
    latency_us: int = 1_000, lag_us: int = 0, rate_per_s: int = 100, span_s: float = SECONDS, **changes: Any
) -> dict[str, Any]:
    """A result as a run makes it."""
    found, verdict = collected(latency_us, lag_us, rate_per_s), changes.get("verdict", Verdict())
    is_limit, why = driver_limit(scenario(rate_per_s), found, 0.1)
    samples = [
        {"at_s": float(at_s), "cpu_s": 0.2, "waited_s": 0.0, "rss_bytes": 50_000_000, "fds": 9}
        for at_s in range(3)
    ]
    extra = {
        "driver": {
            "processes": 1,
            "busy": 0.1,
            "waited_share": 0.0,
            "cpu_us_per_call": 9.0,
            "is_limit": is_limit,
            "why": why,
            "reconnects": 0,
        },
        "usage": {
            "sidecar": {"cpu_us_per_call": 30.0, "rss_mb_max": 50.0, "waited_share": 0.2, "samples": samples}
        },
        "outages": [],
        "failovers": {"failed_s": []},
    }
    admitted = [Admission(0, 50, 100, 0, 100.0, 100.0), Admission(1, 99, 100, 0, 100.0, 100.0)]
    started = datetime(2026, 1, 2, tzinfo=UTC)
    return as_result(scenario(rate_per_s), started, found, verdict, admitted, span_s, extra)


def test_results__percentiles_are_of_all_processes_after_the_warm_up() -> None:
    """The histogram in a result can be read by other tools."""
    found = collected(1_000, warm_up_s=4.0)
    assert found.totals == {(0, 200): 1_000}
    assert found.latency.get_total_count() == 600
    percentiles = percentiles_us(found.latency)
    assert percentiles["p50"] == pytest.approx(1_000, rel=0.001)
    assert percentiles["max"] == pytest.approx(10_000, rel=0.001)
    decoded = HdrHistogram.decode(result()["histogram"])
    assert decoded.get_total_count() == 1_000
    assert percentiles_us(collected(1, warm_up_s=99.0).latency) == {}


@pytest.mark.parametrize(
    ("latency_us", "lag_us", "is_limit"),
    [(1_000, 0, False), (1_000, 900, False), (1_000, 2_500, True), (100_000, 2_500, False)],
)
def test_results__a_driver_that_lags_is_the_limit(latency_us: int, lag_us: int, is_limit: bool) -> None:
    """A lag below a millisecond, or far below the latency, is none."""
    assert driver_limit(scenario(), collected(latency_us, lag_us), 0.1)[0] is is_limit


@pytest.mark.parametrize(("busy", "is_limit"), [(0.5, False), (0.97, True)])
def test_results__a_driver_that_is_never_idle_is_the_limit_of_a_closed_loop(
    busy: float, is_limit: bool
) -> None:
    """There is no schedule to lag behind."""
    assert driver_limit(scenario(loop="closed"), collected(1_000), busy)[0] is is_limit


def test_pages__a_run_whose_driver_was_the_limit_has_no_latency() -> None:
    """Neither a figure nor a plot."""
    page = run_page(result(lag_us=50_000))
    assert "the driver was the limit" in page
    assert "Latency over time" not in page
    assert "Latency over time" in run_page(result())


def test_pages__a_busy_machine_is_said() -> None:
    """A server that waited for a processor is slower than it is."""
    busy, idle = result(), result()
    idle["usage"]["sidecar"]["waited_share"] = 0.01
    assert "sidecar 20%" in run_page(busy)
    assert "The machine was busy" not in run_page(idle)


def test_pages__wrong_answers_are_shown_escaped() -> None:
    """An answer may hold anything."""
    verdict = Verdict([Fault("missing header", 3, ["<script>alert(1)</script>"])])
    page = run_page(result(verdict=verdict))
    assert "The run failed" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("last", "knee_per_s"),
    [
        ({}, 300),
        ({"latency_us": 20_000}, 200),
        ({"span_s": 12.0}, 200),
        ({"verdict": Verdict([Fault("missing header", 1)])}, 200),
    ],
    ids=["held", "slow", "behind", "wrong"],
)
def test_sweep__the_knee_is_the_last_rate_that_is_held(last: dict[str, Any], knee_per_s: float) -> None:
    """A rate at which the driver was the limit says nothing."""
    results = [
        result(rate_per_s=100),
        result(rate_per_s=150, lag_us=50_000),
        result(rate_per_s=200),
        result(rate_per_s=300, **last),
    ]
    assert knee_of(results) == knee_per_s
    assert knee_of(results, p99_ms_max=0.5) == 0


def test_pages__a_sweep_has_latency_and_throughput_over_load() -> None:
    """Rates at which the driver was the limit have no latency in the table."""
    results = [result(rate_per_s=100), result(rate_per_s=200, lag_us=50_000)]
    assert rows_of(results)[1][2] == "driver limit"
    assert sweep_page(scenario(), results, 100, rows_of(results)).count("<svg") == 2


def test_compare__ratios_and_what_makes_results_hard_to_compare() -> None:
    """The second result as a multiple of the first one."""
    first, second = result(), result(latency_us=2_000, rate_per_s=150)
    rows = {name: ratio for name, _, _, ratio in compare(first, second)}
    assert (rows["calls per second"], rows["latency, p50"]) == ("1.50 ×", "2.00 ×")
    assert differences(first, first) == []
    assert differences(first, second) == ["the scenarios differ in load"]
    other = {**first, "machine": {**first["machine"], "processor": "another"}}
    assert any("processors" in text for text in differences(first, other))
    assert "2.00 ×" in comparison_page(["first", "second"], [first, second], compare(first, second))

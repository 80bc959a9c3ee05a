"""Runs a scenario at rising rates, and finds the knee: the highest rate that the server still holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loadtest.harness.pages import is_measured, milliseconds
from loadtest.harness.scenario import Scenario

PEAK_S = 5.0
FIRST_SHARE, LAST_SHARE = 0.1, 1.1
"""The rates, as shares of the rate in a closed loop."""
ANSWERED_SHARE_MIN = 0.98
P99_GROWTH_MAX = 10.0
"""Beyond the knee, p99 is more than so many times that of the lowest rate."""

RunOnce = Callable[[Scenario], dict[str, Any]]


def at_rate(scenario: Scenario, rate_per_s: float, seconds: float) -> Scenario:
    """Return *scenario* with a constant rate in an open loop."""
    changes = {"loop": "open", "shape": "constant", "rate_per_s": rate_per_s, "duration_s": seconds}
    overload = {"unanswered_share_max": 1.0, "unavailable_share_max": 1.0}  # beyond the knee it is expected
    return _changed(scenario, load=changes, oracle=overload)


def peak_of(scenario: Scenario, run: RunOnce) -> float:
    """Return the answers per second in a closed loop over the scenario's connections."""
    closed = {"loop": "closed", "shape": "constant", "duration_s": PEAK_S}
    return float(run(_changed(scenario, load=closed))["calls_per_s"])


def at_peak_share(scenario: Scenario, run: RunOnce) -> Scenario:
    """Return *scenario* at its `load.peak_share` of the peak, measured now; without one, as it is."""
    share = scenario.load.peak_share
    return _changed(scenario, load={"rate_per_s": share * peak_of(scenario, run)}) if share else scenario


def rates_to(peak_per_s: float, steps: int) -> list[float]:
    """
    Return the rates of a sweep.

    >>> rates_to(1_000.0, 3)
    [100.0, 600.0, 1100.0]
    """
    rise = (LAST_SHARE - FIRST_SHARE) / max(1, steps - 1)
    return [round(peak_per_s * (FIRST_SHARE + rise * step), 1) for step in range(steps)]


def sweep(
    scenario: Scenario, rates: Sequence[float], seconds: float, run: RunOnce
) -> Iterator[dict[str, Any]]:
    """Yield the result at each of *rates*."""
    for rate_per_s in rates:
        yield run(at_rate(scenario, rate_per_s, seconds))


def knee_of(results: Sequence[Mapping[str, Any]], p99_ms_max: float = 0.0) -> float:
    """
    Return the highest rate up to which every rate was held; 0 = none was.

    A rate is held if the answers were right, came at `ANSWERED_SHARE_MIN` of the rate at which the calls were
    due, and p99 is at most *p99_ms_max* (0 = ten times that of the lowest rate). Rates at which the driver
    was the limit say nothing.
    """
    knee_per_s, bound_us = 0.0, p99_ms_max * 1e3
    for result in results:
        if not result["verdict"]["is_right"]:
            break
        if not is_measured(result):
            continue
        bound_us = bound_us or P99_GROWTH_MAX * result["latency_us"]["p99"]
        load = result["scenario"]["load"]
        answered_share = result["calls_per_s"] * load["duration_s"] / result["calls"]
        if result["latency_us"]["p99"] > bound_us or answered_share < ANSWERED_SHARE_MIN:
            break
        knee_per_s = load["rate_per_s"]
    return knee_per_s


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table's rows: due and answered per second, p50, p99, p99.9, and whether answers were right."""
    return [
        (
            f"{result['scenario']['load']['rate_per_s']:,.0f}",
            f"{result['calls_per_s']:,.0f}",
            *(
                milliseconds(result["latency_us"][name]) if is_measured(result) else "driver limit"
                for name in ("p50", "p99", "p99.9")
            ),
            "right" if result["verdict"]["is_right"] else "wrong",
        )
        for result in results
    ]


def _changed(scenario: Scenario, **sections: Mapping[str, Any]) -> Scenario:
    settings = scenario.model_dump()
    for name, changes in sections.items():
        settings[name] = {**settings[name], **changes}
    return Scenario(**settings)

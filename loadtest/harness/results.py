"""The result of a run: latency histograms, series by second, the oracle's verdict; written as JSON."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from loadtest.bench.report import commit, processor
from loadtest.harness.oracle import Admission, Verdict
from loadtest.harness.scenario import KINDS, Scenario
from loadtest.harness.tally import UNANSWERED, Second

FORMAT = 1
LATENCY_US_MAX = 3_600_000_000
DIGITS = 3
"""Significant digits of latencies."""
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
ADMISSIONS_MAX = 2_000
"""Integrations in a result; those with most answers come first."""
PACKAGES = ("sidecar", "uvloop", "ngh2", "protobuf", "grpcio", "redis", "hdrhistogram")

LAG_US_MAX = 1_000
LAG_SHARE_MAX = 0.2
"""The driver is the limit if its own p99 lag is more than both: 1 ms, and this share of the latency's p99."""
BUSY_MAX = 0.9
"""
In a closed loop there is no lag: a driver that uses so much of its core, or waits for it, is the limit.
"""


def new_histogram() -> HdrHistogram:
    """Return an empty histogram of microseconds."""
    return HdrHistogram(1, LATENCY_US_MAX, DIGITS)


def record(histogram: HdrHistogram, counts: Mapping[int, int]) -> None:
    """Add *counts*, values with the number of their occurrences."""
    for value, count in counts.items():
        histogram.record_value(min(max(1, value), LATENCY_US_MAX), count)


def percentiles_us(histogram: HdrHistogram) -> dict[str, int]:
    """Return the percentiles, with 'max'; empty if nothing was recorded."""
    if not histogram.get_total_count():
        return {}
    found = histogram.get_percentile_to_value_dict(list(PERCENTILES))
    return {f"p{share:g}": int(value) for share, value in found.items()} | {
        "max": int(histogram.get_max_value())
    }


@dataclass
class Collected:
    """The seconds of all driver processes, added up as they arrive."""

    warm_up_s: float
    latency: HdrHistogram = field(default_factory=new_histogram)
    valid_latency: HdrHistogram = field(default_factory=new_histogram)
    lag: HdrHistogram = field(default_factory=new_histogram)
    totals: Counter[tuple[int, int]] = field(default_factory=Counter)
    _open: dict[int, Second] = field(default_factory=dict)

    def add(self, seconds: Mapping[int, Second]) -> None:
        """Add seconds of one process."""
        for number, second in seconds.items():
            mine = self._open.setdefault(number, Second())
            mine.statuses.update(second.statuses)
            mine.latencies_us.update(second.latencies_us)
            mine.lags_us.update(second.lags_us)
            self.totals.update(second.statuses)
            if number >= self.warm_up_s:
                record(self.latency, second.latencies_us)
                record(self.valid_latency, second.valid_latencies_us)
                record(self.lag, second.lags_us)

    def rows(self) -> list[dict[str, Any]]:
        """Return the series: for each second its answers by status, and its latency percentiles."""
        rows = []
        for number, second in sorted(self._open.items()):
            statuses: Counter[str] = Counter()
            for (_, status), count in second.statuses.items():
                statuses[status_name(status)] += count
            histogram = new_histogram()
            record(histogram, second.latencies_us)
            rows.append({"at_s": number, "statuses": dict(statuses), "latency_us": percentiles_us(histogram)})
        return rows


def status_name(status: int) -> str:
    """Return the name of a status in results."""
    return {UNANSWERED: "unanswered", 0: "unreadable"}.get(status, str(status))


def driver_limit(scenario: Scenario, collected: Collected, busy: float) -> tuple[bool, str]:
    """
    Return whether the drivers, not the server, were the limit, and why.

    *busy* is the share of the time in which they used a core or waited for one.
    """
    if scenario.load.loop == "closed":
        return busy > BUSY_MAX, f"the drivers used their cores, or waited for them, {busy:.0%} of the time"
    lag = percentiles_us(collected.lag).get("p99", 0)
    latency = percentiles_us(collected.latency).get("p99", 0)
    is_limit = lag > LAG_US_MAX and lag > LAG_SHARE_MAX * latency
    return is_limit, f"1 % of the calls left more than {lag / 1e3:,.2f} ms after they were due"


def machine() -> dict[str, Any]:
    """Return what a reader must know of this machine."""
    return {
        "processor": processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def as_result(
    scenario: Scenario,
    started: datetime,
    collected: Collected,
    verdict: Verdict,
    admitted: Sequence[Admission],
    span_s: float,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """
    Return the result as JSON values.

    *span_s* is the time until the last answer; *extra* is what the run measured besides.
    """
    ordered = sorted(admitted, key=lambda item: -item.answered)
    spread = sorted(item.ratio for item in admitted)
    by_kind: dict[str, dict[str, int]] = {}
    for (kind, status), count in sorted(collected.totals.items()):
        by_kind.setdefault(KINDS[kind], {})[status_name(status)] = count
    calls = collected.totals.total()
    return {
        "format": FORMAT,
        "scenario": scenario.model_dump(mode="json"),
        "started_at": started.isoformat(timespec="seconds"),
        "machine": machine(),
        "calls": calls,
        "calls_per_s": calls / max(scenario.load.duration_s, span_s),
        "answers": by_kind,
        "verdict": verdict.as_json(),
        "latency_us": percentiles_us(collected.latency),
        "valid_latency_us": percentiles_us(collected.valid_latency),
        "histogram": collected.latency.encode().decode(),
        "curve": curve_us(collected.latency),
        "seconds": collected.rows(),
        "admissions": [
            [item.integration, item.admitted, item.answered, round(item.nominal, 2)]
            for item in ordered[:ADMISSIONS_MAX]
        ],
        "admission_ratio": {"max": spread[-1], "median": spread[len(spread) // 2]} if spread else {},
        **extra,
    }


def curve_us(histogram: HdrHistogram) -> list[tuple[float, int]]:
    """Return the latency over 1 / (1 - share), from 1 to the number of calls, in steps of a logarithm."""
    total = histogram.get_total_count()
    steps = int(math.log10(total) * 12) if total > 1 else 0
    inverses = [10 ** (step / 12) for step in range(steps + 1)] if steps else []
    return [
        (inverse, int(histogram.get_value_at_percentile(100 * (1 - 1 / inverse)))) for inverse in inverses
    ]


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write the result to *path*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=_plain))


def read(path: Path) -> dict[str, Any]:
    """
    Return a result from *path*.

    Raises:
        ValueError: the file is not a result of this version.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of `python -m loadtest run` of this version")
    return result


def _plain(value: object) -> object:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)  # type: ignore[call-overload]

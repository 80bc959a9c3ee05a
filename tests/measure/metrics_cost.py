"""
Measures what the metrics of one allowed decision cost: `python -m tests.measure.metrics_cost`.

Processor time, medians of alternating rounds: the decision with and without the series of integrations,
and the other counts alone (decisions by reason, latency of the decision and of the request, calls by code).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time_ns

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from tests.building import make_decider, make_integration, make_key, make_request

ROUNDS, REPEATS = 15, 20_000


def deciding(listed_max: int) -> Callable[[], object]:
    """Decide one allowed request, with series of at most *listed_max* integrations."""
    key = make_key()
    decider = make_decider(
        make_integration(key, rate_limit_rpm=10_000, burst=1_000_000),
        metrics=Metrics(TABLE),
        listed_max=listed_max,
    )
    request = make_request(key.api_key)
    return lambda: decider.decide(request, None, lambda *_: None, None)


def counting() -> Callable[[], object]:
    """Count one allowed decision as the decider and the transport do."""
    metrics = Metrics(TABLE)
    values = metrics.values
    slots = {"ok": metrics.slot("sidecar_decisions_total", "ALLOW", "ok")}
    code = metrics.slot("sidecar_calls_total", "0")
    observe_decision_ns = metrics.histogram("sidecar_decision_duration_seconds").observe_ns
    observe_request_ns = metrics.histogram("sidecar_request_duration_seconds", "grpc").observe_ns

    def count() -> None:
        values[slots["ok"]] += 1
        values[code] += 1
        observe_decision_ns(20_000)
        observe_request_ns(60_000)

    return count


def round_us(step: Callable[[], object]) -> float:
    """Processor time of one *step*, in µs."""
    started_ns = process_time_ns()
    for _ in range(REPEATS):
        step()
    return (process_time_ns() - started_ns) / REPEATS / 1_000


def main() -> None:
    """Measure and print."""
    steps = {"with": deciding(50), "without": deciding(0), "counts": counting(), "nothing": lambda: None}
    rounds = [{name: round_us(step) for name, step in steps.items()} for _ in range(ROUNDS)]
    series_us = median(each["with"] - each["without"] for each in rounds)
    counts_us = median(each["counts"] - each["nothing"] for each in rounds)
    decision_us = median(each["with"] - each["nothing"] for each in rounds)
    print(f"a decision without parsing and transport: {decision_us:.2f} µs")
    print(f"the series of integrations: {series_us:.2f} µs")
    print(f"all other counts: {counts_us:.2f} µs")


if __name__ == "__main__":
    main()

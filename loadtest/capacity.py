"""
Calculates the workers and Redis primaries for a rate of decisions, as in docs/operate/scaling.md.

`python -m loadtest.capacity RATE [RATE …]` prints a plan for each rate, in decisions per second. The default
costs were measured on this project's machine; options replace them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

IN_FLIGHT = 2
"""Maximum script calls in flight from one worker to one primary (`StoreLimits.in_flight_max`)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """
    The cost of a decision, and the permitted use of a core.

    `sidecar_us` is the time of a decision in a worker at full load; `call_us` the fixed time of a script
    call in Redis; `entry_us` the time per bucket in the call; `trip_us` the round trip of a call when Redis
    is busy.
    """

    sidecar_us: float = 31.0
    call_us: float = 30.0
    entry_us: float = 4.0
    trip_us: float = 5_000.0
    worker_use: float = 0.6
    redis_use: float = 0.8
    calls_use: float = 0.4


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of cells, and the workers and primaries of each; every cell has its own integrations."""

    cells: int
    workers: int
    primaries: int


def plan(rate_per_s: float, costs: Costs, merged: float = 0.0) -> Plan:
    """
    Return the plan for *rate_per_s* decisions per second.

    Every worker calls every primary, so calls alone take `IN_FLIGHT` x workers x `call_us` / `trip_us` of a
    primary's core; the buckets take the rest. If calls would take more than `calls_use`, the fleet is split
    into cells. *merged* is the share of takes that are merged with an equal take and cost Redis nothing.

    Raises:
        ValueError: the calls of one worker saturate a primary.
    """
    workers = math.ceil(rate_per_s * costs.sidecar_us / 1e6 / costs.worker_use)
    workers_max = math.floor(costs.calls_use * costs.trip_us / (IN_FLIGHT * costs.call_us))
    cells = math.ceil(workers / max(1, workers_max))
    workers = math.ceil(workers / cells)
    calls_use = IN_FLIGHT * workers * costs.call_us / costs.trip_us
    if calls_use >= costs.redis_use:
        raise ValueError(f"calls of {costs.call_us:g} µs saturate a primary at trips of {costs.trip_us:g} µs")
    entries_use = rate_per_s / cells * (1 - merged) * costs.entry_us / 1e6
    return Plan(cells, workers, max(1, math.ceil(entries_use / (costs.redis_use - calls_use))))


def row(rate_per_s: float, costs: Costs) -> str:
    """Return a row of the table in docs/operate/scaling.md: the plan with many buckets, and with one."""
    spread, hot = plan(rate_per_s, costs), plan(rate_per_s, costs, merged=1.0)
    return (
        f"| {rate_per_s:,.0f} | {spread.cells} | {spread.workers} | {spread.primaries} | {hot.primaries} |"
        f" {spread.cells * (spread.workers + spread.primaries)} |"
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the plan for each rate."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.capacity", description=__doc__)
    parser.add_argument("rate", type=float, nargs="+", help="decisions a second")
    for name, default in ((field, getattr(Costs(), field)) for field in Costs.__slots__):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    options = vars(parser.parse_args(arguments))
    rates = options.pop("rate")
    for rate in rates:
        print(row(rate, Costs(**options)))


if __name__ == "__main__":
    main()

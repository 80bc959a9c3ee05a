"""
Latency with Redis, at a share of each side's peak load.

Calls come at random times whether the server answers or not, so a stall counts for every delayed call. Near
the peak, every slow phase of the machine builds a queue. So each load runs several times, at a share of a
peak that is measured directly before. The report has the median, the best and the worst run, a typical tenth
of a second, and the steadiness of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.bench.processes import BenchError, free_port, h2load, running_sidecar
from loadtest.bench.redis_bench import (
    CONNECTIONS,
    OUR_CALLS,
    STREAMS,
    THEIR_CALLS,
    WARM_UP_S,
    Bench,
)
from loadtest.bench.redis_sides import Cost, Side
from loadtest.bench.replay import SHARES, Run, replay
from loadtest.bench.report import Row, Section
from loadtest.bench.steadiness import steadiness_row
from loadtest.bench.workload import CHECK, beside

ALONE_CALLS = 4_000
OPEN_LOOP_S = 3.0
OPEN_LOOP_RUNS = 5
LOAD_SHARES = (0.3, 0.7)
P99_MAX_US = 3_000


@dataclass(frozen=True, slots=True)
class Offered:
    """Runs of one open loop: the peak before each run, and the results, sorted by p99."""

    peaks_per_s: Sequence[float]
    costs: Sequence[Cost]

    @property
    def peak_per_s(self) -> float:
        """The median of the peaks."""
        return median(self.peaks_per_s)

    @property
    def usual(self) -> Cost:
        """The median run by p99."""
        return self.costs[len(self.costs) // 2]

    def us(self, share: str) -> float:
        """Return the latency that *share* of the median run's calls did not exceed."""
        return self.usual.replayed.latencies_us[share]

    @property
    def typical_p99_us(self) -> float:
        """The p99 of a typical tenth of a second: see `Replayed.typical_us`; the median of all runs."""
        return median(cost.replayed.typical_us["0.99"] for cost in self.costs)

    @property
    def p99_range(self) -> str:
        """The p99 of the best run and of the worst."""
        best, worst = (cost.replayed.latencies_us["0.99"] for cost in (self.costs[0], self.costs[-1]))
        return f"{best:,.0f} … {worst:,.0f} µs"


def latency_section(bench: Bench, ours: Side, theirs: Side) -> Section:
    """Measure both sides alone and at shares of their peaks, Sidecar on one connection, and the floor."""
    before = steadiness_row("before")
    rows = _alone_rows(bench, ours, theirs)
    for load in bench.measured_loads:
        for share in LOAD_SHARES:
            rows += _shared_rows(bench, ours, theirs, load, share)
    for load in bench.measured_loads:
        rows += _one_connection_rows(bench, ours, load)
    rows += [*_floor_rows(bench), before, steadiness_row("after")]
    return Section(
        "Latency with Redis, at a share of its own peak",
        "One call at a time by h2load; the rest is an open loop: calls come at random moments (a Poisson"
        f" process) for {OPEN_LOOP_S:g} s, whatever is answered, and latency counts from the moment a call"
        " was due, so a server that stops pays for every call it holds up; the first"
        f" {WARM_UP_S:g} s are left out. Cores do not sleep meanwhile, as far as the system lets us say so."
        " Both sides are loaded with the same share of what each does at most, which is measured again before"
        " each run, as the machine's speed changes from minute to minute; so Sidecar answers many times as"
        f" many calls. {OPEN_LOOP_RUNS} runs each, the rate is the median one: p50, p99 and p99.9 are those"
        " of the median run by p99, beside them the p99 of the best and the worst run; 'typical' is the p99"
        " of the calls due in one tenth of a second, the median over all tenths. The bound for p99 at 70 % is"
        f" {P99_MAX_US / 1_000:g} ms. It is the latency that the load generator sees, on a core that it"
        f" shares with Redis. {CONNECTIONS} connections × {STREAMS} streams made the peak, as above; a proxy"
        " with one worker has one connection, so that stands there, too, against its own peak. The rows"
        " with the embedded store are what load generator and machine add by themselves. The last rows are"
        " a fixed piece of work on both cores at once, with nothing else running: while a neighbor on the"
        " host makes a core half as fast, 70 % of a peak is more than the core can do.",
        rows,
    )


def _alone_rows(bench: Bench, ours: Side, theirs: Side) -> list[Row]:
    """Measure one call at a time: the round trip to Redis without batching."""
    loads = [
        h2load(side.process.grpc, CHECK, bench.messages[0], ALONE_CALLS, 1, 1, keep_latencies=True)
        for side in (ours, theirs)
    ]
    rows = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        our_us, their_us = (load.percentile_us(share) for load in loads)
        ratio = f"{their_us / our_us:.1f} × lower"
        rows.append(Row(f"one call at a time: {name}", f"{our_us:,.0f} µs", f"{their_us:,.0f} µs", ratio))
    return rows


def _offer(bench: Bench, side: Side, load: str, share: float, connections: int = CONNECTIONS) -> Offered:
    """Measure the peak before each run, so that a slow phase of the machine affects both."""
    peaks_per_s, costs = [], []
    for _ in range(OPEN_LOOP_RUNS):
        peak_calls = OUR_CALLS if side.is_ours else THEIR_CALLS
        peaks_per_s.append(bench.load(side, load, peak_calls, connections=connections).replayed.calls_per_s)
        rate_per_s = share * peaks_per_s[-1]
        costs.append(bench.load(side, load, int(rate_per_s * OPEN_LOOP_S), rate_per_s, connections))
    return Offered(peaks_per_s, sorted(costs, key=lambda cost: cost.replayed.latencies_us["0.99"]))


def _shared_rows(bench: Bench, ours: Side, theirs: Side, load: str, share: float) -> list[Row]:
    what = f"{load}, {share:.0%} of its peak"
    try:
        our, their = (_offer(bench, side, load, share) for side in (ours, theirs))
    except BenchError as error:
        # Report the error as a row, and keep the other results.
        return [Row(what, f"not measured: {error}")]
    rows = [
        Row(
            f"{what}: offered",
            f"{share * our.peak_per_s:,.0f}/s",
            f"{share * their.peak_per_s:,.0f}/s",
            f"core {our.usual.busy:.0%} / {their.usual.busy:.0%} busy,"
            f" the load's {our.usual.load_core_busy:.0%} / {their.usual.load_core_busy:.0%}",
        )
    ]
    for name, percent in (("p50", "0.5"), ("p99", "0.99"), ("p99.9", "0.999")):
        our_us, their_us = our.us(percent), their.us(percent)
        ratio = f"{their_us / our_us:.1f} × lower"
        rows.append(Row(f"{what}: {name}", f"{our_us:,.0f} µs", f"{their_us:,.0f} µs", ratio))
    return [
        *rows,
        Row(f"{what}: p99, best … worst run", our.p99_range, their.p99_range),
        Row(
            f"{what}: p99, typical",
            f"{our.typical_p99_us:,.0f} µs",
            f"{their.typical_p99_us:,.0f} µs",
            _of_bound(our, share),
        ),
    ]


def _of_bound(offered: Offered, share: float) -> str:
    """Return the p99 as a share of the bound, in the median run and typically; '' = no bound."""
    if share != LOAD_SHARES[-1]:
        return ""
    return (
        f"{offered.us('0.99') / P99_MAX_US:.0%} of the bound in the median run,"
        f" {offered.typical_p99_us / P99_MAX_US:.0%} typically"
    )


def _one_connection_rows(bench: Bench, side: Side, load: str) -> list[Row]:
    """Measure a proxy with one worker, whose calls share one connection."""
    what = f"{load}, one connection"
    try:
        offered = _offer(bench, side, load, LOAD_SHARES[-1], connections=1)
    except BenchError as error:
        return [Row(what, f"not measured: {error}")]
    figures = " / ".join(f"{offered.us(f'{share:g}'):,.0f}" for share in SHARES)
    return [
        Row(f"{what}: peak", f"{offered.peak_per_s:,.0f}/s"),
        Row(
            f"{what}, {LOAD_SHARES[-1]:.0%} of its peak, {LOAD_SHARES[-1] * offered.peak_per_s:,.0f}/s:"
            " p50 / p99 / p99.9",
            f"{figures} µs",
            f"p99 {offered.p99_range}; typical {offered.typical_p99_us:,.0f} µs",
            _of_bound(offered, LOAD_SHARES[-1]),
        ),
    ]


def _floor_rows(bench: Bench) -> list[Row]:
    """Measure the same open loop without Redis: the overhead of load generator and machine."""
    load, rows = bench.measured_loads[0], []
    grpc_at, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    here = beside(bench.place, "embedded.yaml", grpc_at, admin)
    with running_sidecar(here.config, grpc_at, admin) as process:
        for share in LOAD_SHARES:
            rate_per_s = share * bench.peak(load, True, lambda cost: cost.replayed.calls_per_s)
            calls = int(rate_per_s * OPEN_LOOP_S)
            run = Run(grpc_at, CHECK, calls, CONNECTIONS, STREAMS, rate_per_s, WARM_UP_S)
            before_s = process.cpu_s()
            replayed = replay(bench.folder, run, bench.messages, bench.loads[load])
            busy = (process.cpu_s() - before_s) / replayed.elapsed_s
            figures = " / ".join(f"{replayed.latencies_us[f'{share:g}']:,.0f}" for share in SHARES)
            what = f"embedded store at {rate_per_s:,.0f}/s: p50 / p99 / p99.9"
            cores = f"cores {busy:.0%} and {replayed.load_busy:.0%} busy"
            typical = f"p99 typical {replayed.typical_us['0.99']:,.0f} µs"
            rows.append(Row(what, f"{figures} µs", typical, cores))
    return rows

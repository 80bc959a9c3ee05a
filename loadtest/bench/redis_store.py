"""
Decisions with Redis: Sidecar against the service most people would write first, one EVALSHA a request.

Both make the whole decision for the same requests with the same registry, each alone on the server's
core, in turn; Redis and the load share the other core. What of that a busy machine disturbs least is
processor time, so it stands beside every rate.
"""

from __future__ import annotations

import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.bench.processes import LOAD_CORE, BenchError, free_port, h2load, running_sidecar
from loadtest.bench.redis_sides import Cost, Side, baseline_side, cluster, sidecar_side, standalone
from loadtest.bench.replay import SHARES, Manner, Run, replay
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import CHECK, Place, beside, check_request, write_place, zipf_picks

INTEGRATIONS = 10_000
CONNECTIONS, STREAMS = 4, 32
ROUNDS = 3
OUR_CALLS, THEIR_CALLS = 80_000, 6_000
ALONE_CALLS = 4_000
OPEN_LOOP_S = 5.0
WARM_UP_S = 0.5
LOAD_SHARES = (0.3, 0.7)
P99_MAX_US = 3_000
ATTEMPTS = 3
RECOVERY_S = 2.0
"""After a load that failed: by then Sidecar uses its Redis again."""
RATE_REACHED = 0.95
"""An open loop that sent fewer calls a second than this share of its rate has measured the load generator."""


@dataclass
class Bench:
    """One run of this benchmark: its folder, the requests, and what the machine's other work did to it."""

    folder: Path
    place: Place
    messages: list[bytes]
    loads: dict[str, array[int]]
    repeats: int = 0
    late: int = 0
    calls: int = 0
    peaks: dict[tuple[str, bool], list[Cost]] = field(default_factory=dict)

    def load(self, side: Side, load: str, calls: int, rate_per_s: float = 0.0) -> Cost:
        """
        Put *side* under *load*.

        A load that fails is repeated: another program on the machine can hold up Redis for longer than
        the 50 ms a decision waits for it, again and again.

        Raises:
            BenchError: it fails each time.
        """
        run = Run(side.process.grpc, CHECK, calls, CONNECTIONS, STREAMS, rate_per_s, WARM_UP_S, Manner.LAST)
        for _ in range(ATTEMPTS - 1):
            try:
                return self._load_once(side, load, run)
            except BenchError:
                self.repeats += 1
                time.sleep(RECOVERY_S)
        return self._load_once(side, load, run)

    def _load_once(self, side: Side, load: str, run: Run) -> Cost:
        side.refill()
        before = side.read()
        replayed = replay(self.folder, run, self.messages, self.loads[load])
        if replayed.calls_per_s < RATE_REACHED * run.rate_per_s:
            raise BenchError(f"only {replayed.calls_per_s:,.0f} of {run.rate_per_s:,.0f} calls/s were sent")
        cost = side.cost(replayed, before, side.read())
        self.calls, self.late = self.calls + run.calls, self.late + replayed.late
        return cost

    def warm_up(self, side: Side) -> None:
        """Call for every integration, so that no answer of the measured rounds is the first of its kind."""
        size = min(INTEGRATIONS, OUR_CALLS if side.is_ours else THEIR_CALLS)
        self.load(side, "each", 2 * size if side.is_ours else size)

    def peak(self, load: str, is_ours: bool, figure: Callable[[Cost], float]) -> float:
        """The median of a figure over the rounds at full load."""
        return median(figure(cost) for cost in self.peaks[load, is_ours])


def run() -> list[Section]:
    """Measure throughput, what Redis spends, latency under load, and more workers and primaries."""
    with _on_load_core(), tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        bench = _prepare(Path(folder))
        # Each has a server of its own: what one side does between its loads must not count for the other.
        our_server, their_server = (
            running.enter_context(standalone(bench.folder / name)) for name in ("ours", "theirs")
        )
        ours = running.enter_context(sidecar_side(bench.place, "one", our_server.url, (our_server,)))
        theirs = running.enter_context(baseline_side(bench.place, their_server))
        for side in (ours, theirs):
            bench.warm_up(side)
        _measure_peaks(bench, ours, theirs)
        latency = _latency_rows(bench, ours, theirs)
        running.close()
        scaling = _scaling_rows(bench)
        return [
            _throughput_section(bench),
            _redis_section(bench),
            _latency_section(latency),
            _scaling_section(bench, scaling),
        ]


@contextmanager
def _on_load_core() -> Iterator[None]:
    """Run this process, and all it starts and does not place elsewhere, on the load's core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _prepare(folder: Path) -> Bench:
    unused = f"127.0.0.1:{free_port()}"
    place = write_place(folder, unused, unused, "fast", INTEGRATIONS, with_allowlist=INTEGRATIONS)
    messages = [check_request(key.api_key) for key in place.keys]
    loads = {
        "one hot bucket": array("H", [0]),
        f"{INTEGRATIONS:,} buckets, Zipf": zipf_picks(INTEGRATIONS),
        "each": array("H", range(INTEGRATIONS)),
    }
    return Bench(folder, place, messages, loads)


def _measured_loads(bench: Bench) -> list[str]:
    return [name for name in bench.loads if name != "each"]


def _measure_peaks(bench: Bench, ours: Side, theirs: Side) -> None:
    """Both sides in turn, round by round, so that a slow minute of the machine hits both."""
    for _ in range(ROUNDS):
        for load in _measured_loads(bench):
            for side in (ours, theirs):
                calls = OUR_CALLS if side.is_ours else THEIR_CALLS
                bench.peaks.setdefault((load, side.is_ours), []).append(bench.load(side, load, calls))


def _throughput_section(bench: Bench) -> Section:
    rows: list[Row] = []
    for load in _measured_loads(bench):
        ours, theirs = (
            bench.peak(load, side, lambda cost: cost.replayed.calls_per_s) for side in (True, False)
        )
        our_us, their_us = (bench.peak(load, side, lambda cost: cost.cpu_us) for side in (True, False))
        busy = [bench.peak(load, side, lambda cost: cost.busy) for side in (True, False)]
        rows += [
            Row(load, f"{ours:,.0f}/s", f"{theirs:,.0f}/s", f"{ours / theirs:.1f} × faster"),
            Row(
                f"{load}, processor time per decision",
                f"{our_us:.1f} µs",
                f"{their_us:.0f} µs",
                f"{their_us / our_us:.1f} × less",
            ),
            Row(f"{load}, share of its core in use", f"{busy[0]:.0%}", f"{busy[1]:.0%}"),
        ]
    return Section(
        "Full ext_authz decisions per second with Redis, one process on one core",
        "`store: redis://…`: key, allowlist of 50 entries, scope, bucket in Redis, headers, metrics; the"
        f" integrations come from a file. {CONNECTIONS} connections × {STREAMS} streams, median of {ROUNDS}"
        " rounds, every answer an allow but for the late ones below. Beside it:"
        " `loadtest/baselines/evalsha_sidecar.py`, the same decision by grpc.aio and redis-py with"
        " one EVALSHA each, same registry and requests, round by round in turn. Redis and the load"
        " generator (`loadtest/bench/replay.py`) share the other core; where a side does not use"
        " all of its own, they are the limit, not it. In all loads of this page Redis was"
        f" late (50 ms) for {bench.late} of {bench.calls:,} decisions; loads repeated, as it was late too"
        f" often or the load generator too slow: {bench.repeats}.",
        rows,
    )


def _redis_section(bench: Bench) -> Section:
    rows: list[Row] = []
    for load in _measured_loads(bench):
        for what, figure, text in (
            ("processor time", lambda cost: cost.redis_cpu_us, "{:.2f} µs"),
            ("commands", lambda cost: cost.redis_commands, "{:.2f}"),
            ("script calls", lambda cost: cost.script_calls, "{:.3f}"),
        ):
            ours, theirs = (bench.peak(load, side, figure) for side in (True, False))
            rows.append(
                Row(f"{load}, {what}", text.format(ours), text.format(theirs), f"{theirs / ours:.1f} × less")
            )
    return Section(
        "What Redis spends on one decision",
        "From INFO, before and after the rounds above: `used_cpu_user` + `used_cpu_sys`,"
        " `total_commands_processed` (those inside scripts count), EVALSHA calls. Sidecar's takes share"
        " script calls, and equal takes share an entry of one.",
        rows,
    )


def _latency_rows(bench: Bench, ours: Side, theirs: Side) -> list[Row]:
    rows = _alone_rows(bench, ours, theirs)
    for load in _measured_loads(bench):
        for share in LOAD_SHARES:
            what = f"{load}, {share:.0%} of its peak"
            bound_us = P99_MAX_US if share == LOAD_SHARES[-1] else 0
            try:
                measured = [_offered(bench, side, load, share) for side in (ours, theirs)]
            except BenchError as error:
                # A row that says so is as loud, and leaves the figures that could be measured.
                rows.append(Row(what, f"not measured: {error}"))
                continue
            rows += _latency_rows_of(what, measured[0], measured[1], bound_us)
    return rows + _floor_rows(bench)


def _floor_rows(bench: Bench) -> list[Row]:
    """The same open loop where no Redis takes part: what load generator and machine add."""
    load, rows = _measured_loads(bench)[0], []
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
            rows.append(Row(what, f"{figures} µs", "", cores))
    return rows


def _offered(bench: Bench, side: Side, load: str, share: float) -> tuple[float, Cost]:
    """The rate that is *share* of what *side* did at most, and what came of it."""
    rate_per_s = share * bench.peak(load, side.is_ours, lambda cost: cost.replayed.calls_per_s)
    return rate_per_s, bench.load(side, load, int(rate_per_s * OPEN_LOOP_S), rate_per_s)


def _alone_rows(bench: Bench, ours: Side, theirs: Side) -> list[Row]:
    """One call at a time: what the trip to Redis costs a caller when nobody shares it."""
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


def _latency_rows_of(
    what: str, ours: tuple[float, Cost], theirs: tuple[float, Cost], p99_max_us: int
) -> list[Row]:
    """The percentiles of both sides, each with the rate it was offered; *p99_max_us* 0 = no bound."""
    rows = [
        Row(
            f"{what}: offered",
            f"{ours[0]:,.0f}/s",
            f"{theirs[0]:,.0f}/s",
            f"core {ours[1].busy:.0%} / {theirs[1].busy:.0%} busy,"
            f" the load's {ours[1].load_core_busy:.0%} / {theirs[1].load_core_busy:.0%}",
        )
    ]
    for name, share in (("p50", "0.5"), ("p99", "0.99"), ("p99.9", "0.999")):
        our_us, their_us = (cost.replayed.latencies_us[share] for _, cost in (ours, theirs))
        ratio = f"{their_us / our_us:.1f} × lower"
        if name == "p99" and p99_max_us:
            ratio += f", {our_us / p99_max_us:.0%} of the bound"
        rows.append(Row(f"{what}: {name}", f"{our_us:,.0f} µs", f"{their_us:,.0f} µs", ratio))
    return rows


def _latency_section(rows: Sequence[Row]) -> Section:
    return Section(
        "Latency with Redis, at a share of its own peak",
        "One call at a time by h2load; the rest is an open loop: calls come at random moments (a Poisson"
        f" process) for {OPEN_LOOP_S:g} s, whatever is answered, and latency counts from the moment a call"
        " was due, so a server that stops pays for every call it holds up; the first"
        f" {WARM_UP_S:g} s are left out. Cores do not sleep meanwhile, as far as the system lets us say so."
        " Both sides are loaded with the"
        " same share of what each did above, so Sidecar answers that many times as many calls. The bound"
        f" for p99 at 70 % is {P99_MAX_US / 1_000:g} ms. It is the latency that the load generator sees, on a"
        " core that it shares with Redis. The last rows are the same loop against the embedded store: what"
        " load generator and machine add by themselves.",
        rows,
    )


def _scaling_rows(bench: Bench) -> list[Row]:
    load = _measured_loads(bench)[-1]
    rows = [_scaling_row("1 worker, 1 server", bench.peaks[load, True])]
    with (
        standalone(bench.folder / "again") as server,
        sidecar_side(bench.place, "two", server.url, (server,), workers=2) as side,
    ):
        rows.append(_scaling_row("2 workers, 1 server", _rounds(bench, side, load)))
    for primaries in (1, 3):
        with cluster(bench.folder / f"cluster{primaries}", primaries) as servers:
            url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
            with sidecar_side(bench.place, f"cluster{primaries}", url, servers) as side:
                name = f"1 worker, Cluster of {primaries} {'primary' if primaries == 1 else 'primaries'}"
                rows.append(_scaling_row(name, _rounds(bench, side, load)))
    return rows


def _rounds(bench: Bench, side: Side, load: str) -> list[Cost]:
    bench.warm_up(side)
    return [bench.load(side, load, OUR_CALLS // 2) for _ in range(ROUNDS)]


def _scaling_row(what: str, costs: Sequence[Cost]) -> Row:
    rate = median(cost.replayed.calls_per_s for cost in costs)
    cpu_us, redis_us = median(cost.cpu_us for cost in costs), median(cost.redis_cpu_us for cost in costs)
    takes = 1 / median(cost.script_calls for cost in costs)
    return Row(
        what,
        f"{rate:,.0f}/s",
        f"{cpu_us:.1f} µs sidecar, {redis_us:.1f} µs Redis",
        f"{takes:.1f} takes a call",
    )


def _scaling_section(bench: Bench, rows: Sequence[Row]) -> Section:
    return Section(
        "More workers, more primaries",
        f"{_measured_loads(bench)[-1]}. Beside each rate: processor time per decision of all workers and of"
        " all Redis servers. Two cores cannot show what more cores would do: two workers share them with"
        " Redis and the load, and all primaries share one. What they do show is what a decision costs then,"
        " of which docs/scaling.md makes a plan.",
        rows,
    )

"""
Decisions with Redis: Sidecar against a straightforward service with one EVALSHA per request.

Both make the complete decision for the same requests with the same registry, in turn, each alone on the
server's core; Redis and the load share the other core. Processor time is reported with every rate because
other programs on the machine disturb it least.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from loadtest.bench.redis_bench import (
    CONNECTIONS,
    OUR_CALLS,
    ROUNDS,
    STREAMS,
    Bench,
    on_load_core,
    prepare,
)
from loadtest.bench.redis_latency import latency_section
from loadtest.bench.redis_sides import Cost, Side, baseline_side, cluster, sidecar_side, standalone
from loadtest.bench.report import Row, Section


def run() -> list[Section]:
    """Measure throughput, the cost in Redis, latency under load, and more workers and primaries."""
    with on_load_core(), tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        bench = prepare(Path(folder))
        # Each side has a separate server, so that its work between loads does not count for the other.
        our_server, their_server = (
            running.enter_context(standalone(bench.folder / name)) for name in ("ours", "theirs")
        )
        ours = running.enter_context(sidecar_side(bench.place, "one", our_server.url, (our_server,)))
        theirs = running.enter_context(baseline_side(bench.place, their_server))
        for side in (ours, theirs):
            bench.warm_up(side)
        bench.measure_peaks(ours, theirs)
        latency = latency_section(bench, ours, theirs)
        running.close()
        scaling = _scaling_rows(bench)
        return [
            _throughput_section(bench),
            _redis_section(bench),
            latency,
            _scaling_section(bench, scaling),
        ]


def _throughput_section(bench: Bench) -> Section:
    rows: list[Row] = []
    for load in bench.measured_loads:
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
    for load in bench.measured_loads:
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


def _scaling_rows(bench: Bench) -> list[Row]:
    load = bench.measured_loads[-1]
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
        f"{bench.measured_loads[-1]}. Beside each rate: processor time per decision of all workers and of"
        " all Redis servers. Two cores cannot show what more cores would do: two workers share them with"
        " Redis and the load, and all primaries share one. What they do show is what a decision costs then,"
        " of which docs/operate/scaling.md makes a plan.",
        rows,
    )

"""What the decision log costs: rate, processor time and latency with every decision recorded, and without."""

from __future__ import annotations

import os
import tempfile
from array import array
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.bench.decisions import CONNECTIONS, STREAMS, allowed, confirm_allowed
from loadtest.bench.processes import (
    LOAD_CORE,
    SERVER_CORE,
    BenchError,
    RunningSidecar,
    free_port,
    h2load,
    running_sidecar,
)
from loadtest.bench.replay import Replayed, Run, replay
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import CHECK, Place, beside, check_request, write_place

CALLS = 60_000
ROUNDS = 5
SHARES = (0.5, 0.7)
"""Shares of the peak without a log at which latency is measured; at 0.7 the load generator's core is busy."""
SECONDS = 2.0
WARM_UP_S = 0.5
"""All rounds together stay within the burst of the workload: 1,000,000 calls of each sidecar."""
PATHS = 5_000
"""Different paths, so that the rows compress as those of an API do."""


@dataclass(slots=True)
class _Side:
    """A sidecar with or without a log, and its results by round."""

    place: Place
    sidecar: RunningSidecar
    rates_per_s: list[float] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)
    latencies: dict[float, list[Replayed]] = field(default_factory=lambda: {share: [] for share in SHARES})

    @property
    def rate_per_s(self) -> float:
        return median(self.rates_per_s)

    def latency_us(self, share: float, quantile: str) -> float:
        return median(replayed.typical_us[quantile] for replayed in self.latencies[share])


def run() -> list[Section]:
    """Measure the same sidecar without a log, and with one whose writer is on either core."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        off_at = write_place(folder, _address(), _address(), "fast")
        sides = {
            "off": _Side(
                off_at, stack.enter_context(running_sidecar(off_at.config, off_at.grpc, off_at.admin))
            )
        }
        for writer, core in (("other core", LOAD_CORE), ("same core", SERVER_CORE)):
            log = {"path": f"log-{core}"}
            place = beside(off_at, f"{core}.yaml", _address(), _address(), decision_log=log)
            sidecar = stack.enter_context(running_sidecar(place.config, place.grpc, place.admin))
            os.sched_setaffinity(_writer_pid(sidecar), {core})
            sides[writer] = _Side(place, sidecar)
        body = check_request(off_at.keys[0].api_key)
        for side in sides.values():
            confirm_allowed(side.place, body)
        for _ in range(ROUNDS):
            for side in sides.values():
                _measure_peak(side, body)
        for share in SHARES:
            rate_per_s = share * sides["off"].rate_per_s
            for _ in range(ROUNDS):
                for side in sides.values():
                    side.latencies[share].append(_replayed(folder, side.place, rate_per_s))
        missing = [_missing(side.sidecar) for name, side in sides.items() if name != "off"]
        return [_section(sides, missing)]


def _section(sides: dict[str, _Side], missing: list[float]) -> Section:
    off = sides["off"]
    rows = []
    for name, side in sides.items():
        if side is off:
            continue
        ratio = median(on / without for on, without in zip(side.rates_per_s, off.rates_per_s, strict=True))
        rows.append(
            Row(
                f"decisions per second, writer on the {name}",
                f"{side.rate_per_s:,.0f}/s",
                f"{off.rate_per_s:,.0f}/s",
                f"{ratio - 1:+.1%}",
            )
        )
        for share in SHARES:
            for quantile, text in (("0.5", "p50"), ("0.99", "p99")):
                with_log_us, without_us = side.latency_us(share, quantile), off.latency_us(share, quantile)
                rows.append(
                    Row(
                        f"{text} at {share * off.rate_per_s:,.0f}/s, writer on the {name}",
                        f"{with_log_us:,.0f} µs",
                        f"{without_us:,.0f} µs",
                        f"{with_log_us / without_us:.2f} ×",
                    )
                )
        cpu_us = median(side.cpus_us) - median(off.cpus_us)
        rows.append(
            Row(f"processor time of all processes per call, writer on the {name}", f"+{cpu_us:.1f} µs")
        )
    rows.append(Row("rows that are missing", f"{sum(missing):,.0f}"))
    return Section(
        "Decision log",
        "`decision_log: {path: DIR}` against none, in turn in each round: the same requests as above, every"
        f" decision recorded. Peak by h2load, {CONNECTIONS} connections × {STREAMS} streams; latency in an"
        f" open loop at {SHARES[0]:.0%} and {SHARES[1]:.0%} of the peak without a log."
        f" Median of {ROUNDS} rounds.",
        rows,
    )


def _measure_peak(side: _Side, body: bytes) -> None:
    before, cpu_before_s = allowed(side.sidecar), side.sidecar.cpu_s()
    side.rates_per_s.append(h2load(side.place.grpc, CHECK, body, CALLS, CONNECTIONS, STREAMS).calls_per_s)
    side.cpus_us.append((side.sidecar.cpu_s() - cpu_before_s) * 1e6 / CALLS)
    if allowed(side.sidecar) - before != CALLS:
        raise BenchError("not every call was allowed, so the results are not comparable")


def _replayed(folder: Path, place: Place, rate_per_s: float) -> Replayed:
    key = place.keys[0].api_key
    messages = [check_request(key, f"/v1/orders/{number}?expand=lines") for number in range(PATHS)]
    calls = int(rate_per_s * SECONDS)
    run = Run(place.grpc, CHECK, calls, CONNECTIONS, STREAMS, rate_per_s, WARM_UP_S)
    return replay(folder, run, messages, array("I", range(PATHS)))


def _missing(sidecar: RunningSidecar) -> float:
    name = "sidecar_decision_log_rows_total"
    return sum(sidecar.metric(f'{name}{{result="{result}"}}') for result in ("dropped", "lost"))


def _writer_pid(sidecar: RunningSidecar) -> int:
    for pid in sidecar.pids():
        if b"log_writer" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise BenchError("the sidecar has no process that writes the decision log")


def _address() -> str:
    return f"127.0.0.1:{free_port()}"

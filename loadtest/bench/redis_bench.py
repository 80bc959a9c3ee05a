"""The shared part of the benchmarks with Redis: the loads, and running them."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.bench.processes import LOAD_CORE, BenchError, free_port
from loadtest.bench.redis_sides import Cost, Side
from loadtest.bench.replay import Manner, Run, replay
from loadtest.bench.workload import CHECK, Place, check_request, write_place, zipf_picks

INTEGRATIONS = 10_000
CALLS_UNDER_WAY = 128
CONNECTIONS = 4
STREAMS = CALLS_UNDER_WAY // CONNECTIONS
ROUNDS = 3
OUR_CALLS, THEIR_CALLS = 80_000, 6_000
WARM_UP_S = 0.5
ATTEMPTS = 3
RECOVERY_S = 2.0
"""Pause after a failed load, in which Sidecar reconnects to Redis."""
RATE_REACHED = 0.95
"""Minimum share of an open loop's rate; below it the load generator was the bottleneck."""
EACH = "each"
"""The warm-up load, which calls for every integration once."""


@dataclass
class Bench:
    """One run of this benchmark: its folder, its requests and loads, and its results."""

    folder: Path
    place: Place
    messages: list[bytes]
    loads: dict[str, array[int]]
    repeats: int = 0
    late: int = 0
    calls: int = 0
    peaks: dict[tuple[str, bool], list[Cost]] = field(default_factory=dict)

    @property
    def measured_loads(self) -> list[str]:
        """The names of the loads that are measured."""
        return [name for name in self.loads if name != EACH]

    def load(
        self, side: Side, load: str, calls: int, rate_per_s: float = 0.0, connections: int = CONNECTIONS
    ) -> Cost:
        """
        Run *load* on *side*; *rate_per_s* 0 = a closed loop.

        A failed load is repeated, because another program on the machine can delay Redis for longer than the
        50 ms that a decision waits.

        Raises:
            BenchError: all attempts failed.
        """
        streams = CALLS_UNDER_WAY // connections
        run = Run(side.process.grpc, CHECK, calls, connections, streams, rate_per_s, WARM_UP_S, Manner.LAST)
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
        """Call for every integration, so that all templates are compiled before the measured rounds."""
        size = min(INTEGRATIONS, OUR_CALLS if side.is_ours else THEIR_CALLS)
        self.load(side, EACH, 2 * size if side.is_ours else size)

    def measure_peaks(self, ours: Side, theirs: Side) -> None:
        """Measure both sides in turn, round by round, so that a slow phase of the machine affects both."""
        for _ in range(ROUNDS):
            for load in self.measured_loads:
                for side in (ours, theirs):
                    calls = OUR_CALLS if side.is_ours else THEIR_CALLS
                    self.peaks.setdefault((load, side.is_ours), []).append(self.load(side, load, calls))

    def peak(self, load: str, is_ours: bool, figure: Callable[[Cost], float]) -> float:
        """Return the median of a figure over the rounds at full load."""
        return median(figure(cost) for cost in self.peaks[load, is_ours])


@contextmanager
def on_load_core() -> Iterator[None]:
    """Run this process and its children on the load's core, unless they are pinned elsewhere."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def prepare(folder: Path) -> Bench:
    """Write the registry to *folder*, and return its requests and loads."""
    unused = f"127.0.0.1:{free_port()}"
    place = write_place(folder, unused, unused, "fast", INTEGRATIONS, with_allowlist=INTEGRATIONS)
    messages = [check_request(key.api_key) for key in place.keys]
    loads = {
        "one hot bucket": array("I", [0]),
        f"{INTEGRATIONS:,} buckets, Zipf": zipf_picks(INTEGRATIONS),
        EACH: array("I", range(INTEGRATIONS)),
    }
    return Bench(folder, place, messages, loads)

"""
`python -m loadtest.soak`: runs a sidecar on Redis at half its peak load; memory and descriptors must not
grow.

The program measures the peak briefly, then sends half of it in an open loop. Growth is the slope of a line
through the samples after the warm-up, because single samples vary and a leak is steady.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest.proving import EXIT_BROKEN, EXIT_KEPT, redis_at, run
from sidecar.services.ext_authz_client import read_status
from sidecar.verify.accuracy import Terms
from sidecar.verify.callers import Call, Caller
from sidecar.verify.sidecars import Fleet, child_environment
from sidecar.verify.subjects import ROUTES, Subject, make_subjects, own_prefix

BUCKETS = 200
TERMS = Terms(limit_rpm=600, burst=10, held_at_start=10)
"""At some thousand calls per second some are refused, partly from memory, so that all code paths run."""
CONNECTIONS, IN_FLIGHT = 4, 32
PEAK_S = 3.0
SAMPLES = 60
WARM_UP_SHARE = 0.25
RSS_GROWTH_MAX_MB = 3.0
"""Maximum growth after the warm-up. A leak of 10 bytes per call is 20 MB in ten minutes."""
FD_GROWTH_MAX = 1.0
DEFINED = (200, 429, 503)


class SoakError(Exception):
    """The soak test cannot run."""


class Sample(NamedTuple):
    """One sample of the process: seconds since the start, resident MB (10^6 bytes), descriptors, calls."""

    at_s: float
    rss_mb: float
    fds: int
    calls: int


@dataclass(frozen=True, slots=True)
class SoakReport:
    """The result of a soak test."""

    peak_per_s: float
    half_per_s: float
    samples: tuple[Sample, ...]
    statuses: dict[int, int]
    hung: int

    @property
    def judged(self) -> Sequence[Sample]:
        """The samples after the warm-up."""
        first_s = self.samples[0].at_s + WARM_UP_SHARE * (self.samples[-1].at_s - self.samples[0].at_s)
        return [sample for sample in self.samples if sample.at_s >= first_s]

    @property
    def rss_growth_mb(self) -> float:
        """The growth of memory after the warm-up, by a line through the samples."""
        return growth([(sample.at_s, sample.rss_mb) for sample in self.judged])

    @property
    def fd_growth(self) -> float:
        """The growth of the number of descriptors after the warm-up."""
        return growth([(sample.at_s, sample.fds) for sample in self.judged])

    @property
    def is_flat(self) -> bool:
        """Whether nothing grows, and every call got a defined answer."""
        is_answered = not self.hung and all(status in DEFINED for status in self.statuses)
        return is_answered and self.rss_growth_mb <= RSS_GROWTH_MAX_MB and self.fd_growth < FD_GROWTH_MAX


class SoakLoad:
    """Counts answers by status. Implements `callers.CallHandler`."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        """Send requests of *subjects* in turn."""
        self.statuses: Counter[int] = Counter()
        self._calls = [Call(subject.message, number) for number, subject in enumerate(subjects)]
        self._turn = 0

    def next_call(self, caller: int) -> Call:
        """Return a call of the next integration."""
        self._turn = (self._turn + 1) % len(self._calls)
        return self._calls[self._turn]

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Count the answer."""
        self.statuses[read_status(message) if message else 0] += 1


def growth(points: Sequence[tuple[float, float]]) -> float:
    """
    Return the rise of the least-squares line through *points* from the first to the last.

    >>> growth([(0, 10.0), (1, 11.0), (2, 12.0)])
    2.0
    """
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        raise SoakError("all samples have the same time: run the soak test longer")
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return slope * (points[-1][0] - points[0][0])


async def soak(store: str, seconds: float, peak_s: float = PEAK_S, terms: Terms = TERMS) -> SoakReport:
    """
    Run a sidecar on the Redis at *store* at half its peak load for *seconds*.

    The peak is measured first, for *peak_s*; *terms* are the limits of each integration.

    Raises:
        SoakError, SidecarsError: the test cannot run.
    """
    async with AsyncExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-soak-")))
        registry = folder / "registry.yaml"
        subjects = make_subjects(registry, {f"soak-{number}": terms for number in range(BUCKETS)})
        settings = {"registry": str(registry), "routes": ROUTES}
        fleet = await undo.enter_async_context(
            Fleet(folder, 1, settings, child_environment(own_prefix(store)))
        )
        load = SoakLoad(subjects)
        callers = [Caller(number, fleet.targets[0], load, IN_FLIGHT) for number in range(CONNECTIONS)]
        for caller in callers:
            caller.start()
        try:
            await asyncio.sleep(peak_s)
            peak_per_s = load.statuses.total() / peak_s
            for caller in callers:
                caller.pace(peak_per_s / 2 / CONNECTIONS)
            samples = await _watch(fleet.sidecars[0].pid, load, seconds)
        finally:
            await asyncio.gather(*(caller.stop() for caller in callers))
        calls, span_s = samples[-1].calls - samples[0].calls, samples[-1].at_s - samples[0].at_s
        hung = sum(caller.hung for caller in callers)
        return SoakReport(peak_per_s, calls / span_s, tuple(samples), dict(load.statuses), hung)


async def _watch(pid: int, load: SoakLoad, seconds: float) -> list[Sample]:
    started_s = monotonic()
    samples = [look(pid, 0.0, load.statuses.total())]
    while samples[-1].at_s < seconds:
        await asyncio.sleep(seconds / SAMPLES)
        samples.append(look(pid, monotonic() - started_s, load.statuses.total()))
    return samples


def look(pid: int, at_s: float, calls: int) -> Sample:
    """
    Return a sample of the process *pid*.

    Raises:
        SoakError: the process has ended.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fds = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError as error:
        raise SoakError(f"the sidecar has ended: {error}") from None
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    if found is None:
        raise SoakError("the sidecar has ended: it has no memory")
    return Sample(at_s, int(found.group(1)) * 1024 / 1e6, fds, calls)


def as_table(report: SoakReport) -> Table:
    """Return a table with about ten of the samples."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("seconds", "RSS MB", "descriptors", "calls"):
        table.add_column(name, justify="right")
    for sample in report.samples[:: max(1, len(report.samples) // 10)]:
        table.add_row(f"{sample.at_s:.0f}", f"{sample.rss_mb:.2f}", str(sample.fds), f"{sample.calls:,}")
    return table


def main(arguments: list[str]) -> int:
    """Run the soak test; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="duration in minutes (default 10)")
    parser.add_argument("--redis", default="", metavar="URL", help="the store; default: a new server")
    given = parser.parse_args(arguments)
    with redis_at(given.redis) as store:
        report = run(soak(store, given.minutes * 60))
    Console().print(as_table(report))
    print(
        f"peak {report.peak_per_s:,.0f} calls/s, held {report.half_per_s:,.0f} calls/s;"
        f" answers {dict(sorted(report.statuses.items()))}, hung {report.hung};"
        f" growth after the warm-up: {report.rss_growth_mb:+.2f} MB, {report.fd_growth:+.2f} descriptors"
    )
    print("flat" if report.is_flat else "not flat")
    return EXIT_KEPT if report.is_flat else EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

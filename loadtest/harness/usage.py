"""Samples processor time and memory of groups of processes, from /proc."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """
    One group at one time.

    `cpu_s` is the processor time used since the last sample, `waited_s` the time in which its threads could
    have run but had no processor, because other programs used it.
    """

    at_s: float
    cpu_s: float
    waited_s: float
    rss_bytes: int
    fds: int


@dataclass
class _Process:
    """What one process used since it was first seen, and now."""

    cpu_s: float
    waited_s: float
    rss_bytes: int
    fds: int


@dataclass
class Usage:
    """The samples of each group; processes may come and go between two of them."""

    groups: Callable[[], Mapping[str, Sequence[int]]]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    _seen: dict[int, _Process] = field(default_factory=dict)

    def sample(self, at_s: float) -> None:
        """Take a sample; *at_s* is in seconds since the start of the load."""
        try:
            groups = self.groups()
        except OSError:  # a process ended while its children were listed
            return
        for name, pids in groups.items():
            total = Sample(at_s, 0.0, 0.0, 0, 0)
            for pid in pids:
                try:
                    process = _read(pid)
                except OSError:
                    continue
                before = self._seen.get(pid) or (_NEW if name in self.samples else process)
                self._seen[pid] = process
                total = Sample(
                    at_s,
                    total.cpu_s + process.cpu_s - before.cpu_s,
                    total.waited_s + max(0.0, process.waited_s - before.waited_s),  # a thread may have ended
                    total.rss_bytes + process.rss_bytes,
                    total.fds + process.fds,
                )
            self.samples.setdefault(name, []).append(total)

    def cpu_s(self, group: str) -> float:
        """Return the processor time that *group* used between the first sample and the last one."""
        return sum(sample.cpu_s for sample in self.samples.get(group, ())[1:])

    def waited_share(self, group: str) -> float:
        """Return how much of the time *group* waited for a processor; above 1 if several threads did."""
        samples = self.samples[group]
        span_s = samples[-1].at_s - samples[0].at_s
        return sum(sample.waited_s for sample in samples[1:]) / span_s if span_s else 0.0


def growth(points: Sequence[tuple[float, float]]) -> float:
    """
    Return the rise of the least-squares line through *points* from the first to the last; 0 of one moment.

    Single samples vary and a leak is steady, so the line shows a leak better than the last sample.

    >>> growth([(0, 10.0), (1, 11.0), (2, 12.0)])
    2.0
    """
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return slope * (points[-1][0] - points[0][0])


def waited_s(pid: int | str = "self") -> float:
    """
    Return how long the threads of a process have waited for a processor; 0 where Linux does not count it.

    Source: /proc/PID/schedstat (Linux, Documentation/scheduler/sched-stats.rst).
    """
    total_ns = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((thread / "schedstat").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return total_ns / 1e9


def _read(pid: int) -> _Process:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    fds = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return _Process(cpu_s, waited_s(pid), pages * _PAGE_BYTES, fds)


_NEW = _Process(0.0, 0.0, 0, 0)

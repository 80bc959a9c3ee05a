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
    """One group at one time: processor time used since the last sample, resident memory, descriptors."""

    at_s: float
    cpu_s: float
    rss_bytes: int
    fds: int


@dataclass
class Usage:
    """The samples of each group; processes may come and go between two of them."""

    groups: Callable[[], Mapping[str, Sequence[int]]]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    _cpu_s: dict[int, float] = field(default_factory=dict)

    def sample(self, at_s: float) -> None:
        """Take a sample; *at_s* is in seconds since the start of the load."""
        try:
            groups = self.groups()
        except OSError:  # a process ended while its children were listed
            return
        for name, pids in groups.items():
            used_s, rss_bytes, fds = 0.0, 0, 0
            for pid in pids:
                try:
                    cpu_s, resident_bytes, open_fds = _read(pid)
                except OSError:
                    continue
                used_s += cpu_s - self._cpu_s.get(pid, 0.0 if name in self.samples else cpu_s)
                self._cpu_s[pid] = cpu_s
                rss_bytes += resident_bytes
                fds += open_fds
            self.samples.setdefault(name, []).append(Sample(at_s, used_s, rss_bytes, fds))

    def cpu_s(self, group: str) -> float:
        """Return the processor time that *group* used between the first sample and the last one."""
        return sum(sample.cpu_s for sample in self.samples.get(group, ())[1:])


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


def _read(pid: int) -> tuple[float, int, int]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    fds = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, pages * _PAGE_BYTES, fds

"""
What the workers use: CPU, memory, file descriptors; `process_*` tells of the supervisor alone.

CPU time never falls: what an ended worker used is in the kernel's account of waited-for children from
the moment it leaves /proc, and both are read in the thread that waits for them. It is added up in whole
µs, because a sum of floats depends on the order, and Prometheus takes the least fall for a reset.

Source: getrusage(2), proc(5).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WorkerUsage(Collector):
    """Collects the use of the processes that *pids* names, and of those that have ended."""

    def __init__(
        self, pids: Callable[[], Iterable[int]], orphans_cpu_us: Callable[[], int] = lambda: 0
    ) -> None:
        """Ask both at every collection; *orphans_cpu_us* of ended children were no worker's."""
        self._pids = pids
        self._orphans_cpu_us = orphans_cpu_us

    def collect(self) -> Iterator[Metric]:
        """Yield the three families."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_us = round(ended.ru_utime * 1e6) + round(ended.ru_stime * 1e6) - self._orphans_cpu_us()
        resident_bytes = fds = 0
        for pid in self._pids():
            folder = Path(f"/proc/{pid}")
            try:
                # The name in brackets may hold anything; fields 14 and 15 are utime and stime.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                cpu_us += (int(fields[11]) + int(fields[12])) * _TICK_US
                resident_bytes += int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
                fds += sum(1 for _ in (folder / "fd").iterdir())
            except OSError:  # it is about to be waited for
                continue
        yield CounterMetricFamily(
            "sidecar_workers_cpu_seconds", "CPU time of all workers, ended ones included.", value=cpu_us / 1e6
        )
        yield GaugeMetricFamily(
            "sidecar_workers_resident_memory_bytes",
            "Resident memory of all workers; pages that they share count for each.",
            value=resident_bytes,
        )
        yield GaugeMetricFamily(
            "sidecar_workers_open_fds", "Open file descriptors of all workers.", value=fds
        )

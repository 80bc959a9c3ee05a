"""CPU priority of the admin API below the workers, and what the workers use."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from sidecar.process.supervisor.slot import Slot

NICENESS = 19
"""The highest niceness: beside a busy worker of niceness 0 it gets 1.5 % of a core."""

SLICE_NS = 100_000
"""The shortest time slice that Linux grants (kernel/sched/syscalls.c)."""
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Number of the system call by machine; glibc has no wrapper before 2.41."""
SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""size, policy, flags, niceness, priority, runtime, deadline, period."""

Result = TypeVar("Result")


def request_short_slices() -> bool:
    """
    Let this thread preempt threads of lower priority as soon as it wakes; False = not possible here.

    Since Linux 6.6 (EEVDF) a running thread keeps the processor for a slice of up to some milliseconds;
    since 6.12 a thread that asks for shorter slices preempts it. Older kernels let waking threads preempt
    anyway, and ignore the request.

    Source: sched_setattr(2); Linux, Documentation/scheduler/sched-eevdf.rst.
    """
    number = SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return False
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = SCHED_ATTR.pack(SCHED_ATTR.size, os.SCHED_OTHER, 0, niceness, 0, SLICE_NS, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)


class Priority:
    """
    Lowers the priority of a supervisor's main thread, but not of the workers that it starts.

    On Linux niceness belongs to a thread, new threads inherit it, and without privileges nothing lowers it
    again. So the workers are started from a thread that was created before the niceness was raised.

    Source: setpriority(2), sched(7).
    """

    def __init__(self) -> None:
        """Change nothing before `lower`."""
        self._starter: ThreadPoolExecutor | None = None

    def lower(self) -> None:
        """Lower the priority of this thread, and of the threads that it starts from now on."""
        if self._starter is None:
            self._starter = ThreadPoolExecutor(1, "starter")
            self._starter.submit(os.getpid).result()  # the first job creates the thread
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)

    def start(self, start: Callable[[], Result]) -> Result:
        """Call *start*, which starts a process, at the original niceness; return its result."""
        return start() if self._starter is None else self._starter.submit(start).result()

    def close(self) -> None:
        """Stop the thread that starts processes."""
        if self._starter is not None:
            self._starter.shutdown()
            self._starter = None


class WorkerHealth(Collector):
    """Collects which worker is sick: whether it is ready, how late its event loop is, its restarts."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        """Look at *slots* at every collection."""
        self._slots = slots

    def collect(self) -> Iterator[Metric]:
        """Yield the four metric families."""
        ready = GaugeMetricFamily(
            "sidecar_worker_ready", "1 = this worker is ready for traffic.", labels=_WORKER
        )
        silent = GaugeMetricFamily(
            "sidecar_worker_silent_seconds",
            "How long this worker's event loop is blocked, whole seconds; it is killed after 30.",
            labels=_WORKER,
        )
        restarts = CounterMetricFamily(
            "sidecar_worker_slot_restarts", "Times that this worker ended or was replaced.", labels=_WORKER
        )
        lag = SummaryMetricFamily(
            "sidecar_worker_loop_lag_seconds",
            "How late a timer of this worker's event loop ran, sampled four times a second.",
            labels=_WORKER,
        )
        for slot in self._slots:
            number, (samples, sum_ns) = [str(slot.index)], slot.loop_lag
            ready.add_metric(number, slot.component.is_ready)
            silent.add_metric(number, slot.beats_missed)
            lag.add_metric(number, samples, sum_ns / 1e9)
            restarts.add_metric(number, slot.restarts)
        yield from (ready, silent, lag, restarts)


_WORKER = ["worker"]
_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WorkerUsage(Collector):
    """
    Collects CPU time, memory and open files of all workers; `process_*` is the supervisor alone.

    The CPU time must never fall. The kernel adds the time of a waited-for child to RUSAGE_CHILDREN when the
    child leaves /proc, and both are read in the thread that waits for it. The sum is in whole µs, because a
    sum of floats depends on its order, and Prometheus takes the smallest fall for a reset.

    Source: getrusage(2), proc(5).
    """

    def __init__(
        self, pids: Callable[[], Iterable[int]], orphans_cpu_us: Callable[[], int] = lambda: 0
    ) -> None:
        """Call both at every collection; *orphans_cpu_us* is the part that were no workers."""
        self._pids = pids
        self._orphans_cpu_us = orphans_cpu_us

    def collect(self) -> Iterator[Metric]:
        """Yield the three metric families."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_us = round(ended.ru_utime * 1e6) + round(ended.ru_stime * 1e6) - self._orphans_cpu_us()
        resident_bytes = fds = 0
        for pid in self._pids():
            folder = Path(f"/proc/{pid}")
            try:
                # The name in brackets may contain anything; fields 14 and 15 are utime and stime.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                cpu_us += (int(fields[11]) + int(fields[12])) * _TICK_US
                resident_bytes += int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
                fds += sum(1 for _ in (folder / "fd").iterdir())
            except OSError:  # the process has ended
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

"""What the workers use, told without ever falling."""

from __future__ import annotations

import os
import subprocess
import sys

from sidecar.process.supervisor.resources import WorkerUsage

BUSY = "import sys; sum(i * i for i in range(3_000_000)); print('busy', flush=True); sys.stdin.read()"


def told(usage: WorkerUsage) -> dict[str, float]:
    """The three values by family name."""
    return {family.name: family.samples[0].value for family in usage.collect()}


def test_usage__an_ended_worker_stays_in_the_cpu_time() -> None:
    """Before its end from /proc, afterwards from the kernel's account: the sum only grows."""
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pids = [child.pid]
    usage = WorkerUsage(lambda: pids)
    idle_s = told(WorkerUsage(list))["sidecar_workers_cpu_seconds"]
    assert child.stdout is not None and child.stdout.readline() == b"busy\n"
    running = told(usage)
    assert running["sidecar_workers_cpu_seconds"] > idle_s
    assert running["sidecar_workers_resident_memory_bytes"] > 1_000_000
    assert running["sidecar_workers_open_fds"] >= 3
    child.communicate(timeout=10)
    pids.clear()
    ended = told(usage)
    assert ended["sidecar_workers_cpu_seconds"] >= running["sidecar_workers_cpu_seconds"]
    assert ended["sidecar_workers_resident_memory_bytes"] == 0
    assert ended["sidecar_workers_open_fds"] == 0


def test_usage__cpu_time_is_whole_microseconds_however_it_is_added_up() -> None:
    """A sum of floats depends on the order: it could fall by 1e-15 s, which Prometheus takes for a reset."""
    children = [
        subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    pids = [child.pid for child in children]
    told_s = []
    for child in children:
        told_s.append(told(WorkerUsage(lambda: pids))["sidecar_workers_cpu_seconds"])
        child.communicate(timeout=30)
        pids.remove(child.pid)
        told_s.append(told(WorkerUsage(lambda: pids))["sidecar_workers_cpu_seconds"])
    assert told_s == sorted(told_s)
    assert told_s == [round(value_s * 1e6) / 1e6 for value_s in told_s]


def test_usage__a_process_that_is_gone_is_left_out() -> None:
    """A worker may end between being listed and being looked at."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(10)
    gone, alone = (
        told(WorkerUsage(lambda: [child.pid, os.getpid()])),
        told(WorkerUsage(lambda: [os.getpid()])),
    )
    assert gone["sidecar_workers_open_fds"] == alone["sidecar_workers_open_fds"]

"""The priority of the admin API below the workers, and the metrics of the workers' resources."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sidecar.process.supervisor.resources import NICENESS, WorkerUsage

TIMEOUT_S = 60
SCENE = """
import os, subprocess, sys
from sidecar.process.supervisor.resources import Priority
def niceness_of_child():
    look = [sys.executable, "-c", "import os; print(os.nice(0))"]
    return int(subprocess.run(look, capture_output=True, check=True).stdout)
os.nice({more})
priority = Priority()
before = priority.start(niceness_of_child)
priority.lower()
priority.lower()
started = [priority.start(niceness_of_child) for _ in range(2)]
print(before, os.getpriority(os.PRIO_PROCESS, 0), *started, niceness_of_child())
priority.close()
"""


@pytest.mark.parametrize("more", [0, 3])
def test_priority__gives_way_to_what_it_starts(more: int) -> None:
    """The thread gets the highest niceness, and so does what it starts itself; workers keep the first one."""
    command = [sys.executable, "-c", SCENE.format(more=more)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    start = min(NICENESS, os.nice(0) + more)
    assert list(map(int, ended.stdout.split())) == [start, NICENESS, start, start, NICENESS]


SLICE_SCENE = """
import os
from sidecar.process.supervisor.resources import request_short_slices
os.nice({more})
before = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
print(request_short_slices(), before == (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)))
"""


@pytest.mark.parametrize("more", [0, 3])
def test_ask_for_short_slices__is_taken_and_changes_no_niceness(more: int) -> None:
    """The system takes the wish, and priority and policy are those from before."""
    command = [sys.executable, "-c", SLICE_SCENE.format(more=more)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert ended.stdout.split() == ["True", "True"]


BUSY = "import sys; sum(i * i for i in range(3_000_000)); print('busy', flush=True); sys.stdin.read()"


def reported(usage: WorkerUsage) -> dict[str, float]:
    """The three values by family name."""
    return {family.name: family.samples[0].value for family in usage.collect()}


def test_usage__an_ended_worker_stays_in_the_cpu_time() -> None:
    """Before its end from /proc, afterwards from the kernel's account: the sum only grows."""
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pids = [child.pid]
    usage = WorkerUsage(lambda: pids)
    idle_s = reported(WorkerUsage(list))["sidecar_workers_cpu_seconds"]
    assert child.stdout is not None and child.stdout.readline() == b"busy\n"
    running = reported(usage)
    assert running["sidecar_workers_cpu_seconds"] > idle_s
    assert running["sidecar_workers_resident_memory_bytes"] > 1_000_000
    assert running["sidecar_workers_open_fds"] >= 3
    child.communicate(timeout=60)
    pids.clear()
    ended = reported(usage)
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
        told_s.append(reported(WorkerUsage(lambda: pids))["sidecar_workers_cpu_seconds"])
        child.communicate(timeout=60)
        pids.remove(child.pid)
        told_s.append(reported(WorkerUsage(lambda: pids))["sidecar_workers_cpu_seconds"])
    assert told_s == sorted(told_s)
    assert told_s == [round(value_s * 1e6) / 1e6 for value_s in told_s]


def test_usage__a_process_that_is_gone_is_left_out() -> None:
    """A worker may end between being listed and being looked at."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)
    gone, alone = (
        reported(WorkerUsage(lambda: [child.pid, os.getpid()])),
        reported(WorkerUsage(lambda: [os.getpid()])),
    )
    assert gone["sidecar_workers_open_fds"] == alone["sidecar_workers_open_fds"]

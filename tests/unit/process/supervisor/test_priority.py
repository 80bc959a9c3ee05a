"""Who gets the processor first: each case in a process of its own, because nobody gets niceness back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sidecar.process.supervisor.resources import NICENESS

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

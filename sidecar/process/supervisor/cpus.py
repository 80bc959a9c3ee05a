"""How many workers `workers: auto` means."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

from sidecar.process.settings import WORKERS_MAX

CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use: '<quota µs> <period µs>', 'max' = no quota (cgroup v2, cpu.max)."""


def worker_count(workers: int | Literal["auto"]) -> int:
    """The number of workers that the setting *workers* asks for."""
    return min(WORKERS_MAX, usable_cpus()) if workers == "auto" else workers


def usable_cpus(quota_file: Path = CPU_QUOTA_FILE) -> int:
    """How many CPUs this process may run on at once: its affinity, cut at its container's quota."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2 here, or no quota
        return cpus

"""What `auto` means here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.process.operating_system import usable_cpus, worker_count

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000\n", HERE),
        (f"{HERE * 100_000} 100000\n", HERE),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        (f"{(HERE + 7) * 100_000} 100000\n", HERE),
        ("1 0\n", HERE),
        ("nonsense", HERE),
    ],
)
def test_usable_cpus__a_quota_cuts_the_affinity(tmp_path: Path, quota: str, cpus: int) -> None:
    """A container that may use one CPU of many gets one worker; half a CPU counts as one."""
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cpus(file) == cpus


def test_usable_cpus__without_a_quota_it_is_the_affinity(tmp_path: Path) -> None:
    """No cgroup v2, no quota."""
    assert usable_cpus(tmp_path / "missing") == HERE


def test_usable_cpus__a_fraction_is_rounded_up(tmp_path: Path) -> None:
    """One and a half CPUs are two workers where there are two."""
    file = tmp_path / "cpu.max"
    file.write_text("150000 100000\n")
    assert usable_cpus(file) == min(2, HERE)


def test_worker_count__is_what_was_asked_for() -> None:
    """A number is itself; auto is what can be used."""
    assert worker_count(7) == 7
    assert worker_count("auto") == usable_cpus()

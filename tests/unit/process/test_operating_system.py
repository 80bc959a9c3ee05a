"""CPUs, open files, orphaned processes, and the notification of systemd."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.process.operating_system import (
    FILES_WANTED,
    READY,
    OrphanReaper,
    notify_systemd,
    reloading,
    usable_cpus,
    worker_count,
)
from tests.unit.process.running import SERVE, Configured
from tests.waiting import eventually

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


SCRIPT = """
import resource
from sidecar.process.operating_system import raise_open_files_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(raise_open_files_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(256, 1_024), (1_024, 1_024), (512, None)])
def test_open_files__the_soft_limit_is_raised(soft: int, hard: int | None) -> None:
    """As far as the hard one allows, and no further than makes sense; the hard one stays."""
    script = SCRIPT.format(soft=soft, hard="hard" if hard is None else hard)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    reported, in_force, limit = map(int, result.stdout.split())
    expected = min(FILES_WANTED, resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard)
    assert reported == in_force == expected
    assert hard is None or limit == hard


PR_SET_CHILD_SUBREAPER = 36
WRAPPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl({option}, 1, 0, 0, 0)
if os.fork() == 0:
    orphan = os.fork()
    if orphan == 0:
        sys.stdin.read()
    os._exit(0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Becomes *argv*, the parent of a child that has ended and of an orphan that ends with standard input."""


def state_of(pid: int) -> str:
    """The state of a process in /proc; '' = it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children_of(pid: int) -> dict[int, str]:
    """The children of *pid* and the state of each."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if parent == str(pid):
            found[int(folder.name)] = state
    return found


@pytest.mark.parametrize("admin", [[], "127.0.0.1:0"], ids=["alone", "supervised"])
def test_serve__reaps_orphans(tmp_path: Path, admin: object) -> None:
    """
    Those from before the start and those that end later, as PID 1 of a container has to.

    A subreaper inherits orphans as PID 1 does, and needs no container.
    """
    # A SQLite registry brings the admin API, and with it a supervisor above one worker.
    registry = "registry.yaml" if admin == [] else "sqlite:registry.sqlite"
    configured = Configured(tmp_path, listen={"grpc": "127.0.0.1:0", "admin": admin}, registry=registry)
    wrapper = WRAPPER.format(option=PR_SET_CHILD_SUBREAPER)
    command = [sys.executable, "-c", wrapper, *SERVE, "--config", str(configured.file)]
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)
    try:
        assert serving.stdin is not None
        ready = b'"serving"' if admin == [] else b'"supervising"'
        eventually(lambda: ready in (tmp_path / "log").read_bytes(), what="it serves")
        workers = 0 if admin == [] else 1
        eventually(lambda: len(children_of(serving.pid)) == 1 + workers, what="the ended child is reaped")
        serving.stdin.close()
        eventually(lambda: len(children_of(serving.pid)) == workers, what="the orphan is reaped")
        assert "Z" not in children_of(serving.pid).values()
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 0
    finally:
        serving.kill()
        serving.wait(60)


def test_reap__leaves_own_children_alone() -> None:
    """A child's starter gets its exit code; other ended children are reaped, their CPU time counted."""
    own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    other = subprocess.Popen([sys.executable, "-c", "sum(range(3_000_000))"])
    for child in (own, other):
        eventually(lambda: state_of(child.pid) == "Z", what="it has ended")  # noqa: B023
    reaper = OrphanReaper(lambda: [own.pid])
    reaper.reap()
    assert (state_of(own.pid), state_of(other.pid)) == ("Z", "")
    assert reaper.cpu_us > 0
    reaper.reap()
    assert own.wait(60) == 7
    other.wait(60)


def test_watch__a_process_that_inherits_no_orphans_reaps_none() -> None:
    """Outside a container the children of this process are somebody's."""
    assert os.getpid() != 1
    is_subreaper = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(is_subreaper), 0, 0, 0)
    assert is_subreaper.value == 0
    child = subprocess.Popen([sys.executable, "-c", ""])
    eventually(lambda: state_of(child.pid) == "Z", what="it has ended")
    loop = asyncio.new_event_loop()
    try:
        OrphanReaper().watch(loop)
    finally:
        loop.close()
    assert state_of(child.pid) == "Z"
    child.wait(60)


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_notify__sends_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The state in one datagram, to a path or to an abstract name."""
    name = str(tmp_path / "notify") if kind == "path" else f"@{tmp_path.name}-notify"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(60)
        systemd.bind(name.replace("@", "\0", 1))
        notify_systemd(READY)
        assert systemd.recv(100) == b"READY=1"


def test_notify__does_nothing_without_systemd(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the variable nothing is sent and nothing is logged."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd(READY)
    assert caplog.records == []


def test_notify__a_failure_is_only_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sidecar that serves does not end because systemd's socket is missing."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "missing"))
    with caplog.at_level(logging.WARNING):
        notify_systemd(reloading())
    assert "No such file or directory" in caplog.text
    assert "RELOADING=1 " in caplog.text

"""Orphans are reaped, own children are left to whoever started them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.process.operating_system import OrphanReaper
from tests.unit.process.running import SERVE, Configured
from tests.waiting import eventually

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
    """The state of a process as /proc tells it; '' = it is gone."""
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
        eventually(lambda: ready in (tmp_path / "log").read_bytes(), 30, what="it serves")
        workers = 0 if admin == [] else 1
        eventually(lambda: len(children_of(serving.pid)) == 1 + workers, what="the ended child is reaped")
        serving.stdin.close()
        eventually(lambda: len(children_of(serving.pid)) == workers, what="the orphan is reaped")
        assert "Z" not in children_of(serving.pid).values()
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
    finally:
        serving.kill()
        serving.wait(30)


def test_reap__leaves_own_children_alone() -> None:
    """Whoever started a child gets its exit code; another ended child is reaped, its CPU time counted."""
    own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    other = subprocess.Popen([sys.executable, "-c", "sum(range(3_000_000))"])
    for child in (own, other):
        eventually(lambda: state_of(child.pid) == "Z", what="it has ended")  # noqa: B023
    reaper = OrphanReaper(lambda: [own.pid])
    reaper.reap()
    assert (state_of(own.pid), state_of(other.pid)) == ("Z", "")
    assert reaper.cpu_us > 0
    reaper.reap()
    assert own.wait(10) == 7
    other.wait(10)


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
    child.wait(10)

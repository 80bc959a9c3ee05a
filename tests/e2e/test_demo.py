"""`make demo` shows real answers, tidies up after itself, and fails when an answer is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.demo.scenes import Cast, scenes
from deploy.demo.tour import PROXIES
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "deploy.demo"]
TIMEOUT_S = 60.0


def children_of(pid: int) -> set[int]:
    """The processes that *pid* has started and not yet taken leave of."""
    tasks = Path(f"/proc/{pid}/task")
    lists = [task.joinpath("children").read_text() for task in tasks.iterdir()]
    return {int(child) for text in lists for child in text.split()}


def both_children_of(pid: int) -> set[int]:
    """The two programs of a demo, once both run."""
    children = children_of(pid)
    return children if len(children) == 2 else set()


def is_running(pid: int) -> bool:
    """Whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("proxy", PROXIES)
def test_demo__shows_every_scene_and_succeeds(proxy: str) -> None:
    """The transcript holds each promised answer, in plain text where there is no terminal."""
    result = subprocess.run(
        [*COMMAND, proxy],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    for number, scene in enumerate(scenes(Cast()), 1):
        part = result.stdout.partition(f"\n{number}. {scene.title}\n")[2]
        assert re.search(rf"^   {scene.status} ", part, re.MULTILINE)
        assert f"x-auth-reason: {scene.reason}" in part or not scene.reason
    for shown in (
        "x-ratelimit-reset: ",
        "the full burst is available again",
        "retry-after: ",
        "x-integration-id: warehouse",
    ):
        assert shown in result.stdout
    assert not re.search(r"sck_[0-9A-Za-z]{10}_[0-9A-Za-z]", result.stdout), "a whole API key was shown"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo__leaves_nothing_behind_when_interrupted(number: signal.Signals, code: int) -> None:
    """Ctrl-C in the middle stops Envoy and the sidecar as the end of the tour does."""
    with subprocess.Popen(COMMAND, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as demo:
        started = eventually(lambda: both_children_of(demo.pid), what="the sidecar and Envoy")
        demo.send_signal(number)
        demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == code
    assert [pid for pid in started if is_running(pid)] == []

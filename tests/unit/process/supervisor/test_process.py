"""A worker as a child process: what it gets, what is heard of it, and what is left when it fails."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from sidecar.observe.shared import WorkerCounts
from sidecar.observe.table import TABLE
from sidecar.process.config import Config, load_config
from sidecar.process.supervisor import process
from sidecar.process.supervisor.process import END_GRACE_S, WorkerProcess
from sidecar.transports.listeners import parse_endpoint
from tests.unit.process.supervisor import child

LISTEN = {"grpc": (parse_endpoint("127.0.0.1:40001"), parse_endpoint("unix:/run/sidecar/grpc.sock"))}
PAUSES = TABLE.slot("sidecar_accept_pauses_total")
TIMEOUT_S = 60.0


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration that listens on two addresses."""
    file = tmp_path / "sidecar.yaml"
    file.write_text(
        "listen: {grpc: ['127.0.0.1:40001', 'unix:/run/sidecar/grpc.sock']}\ndrain_timeout_s: 2.5\n"
    )
    return load_config(file, {})


@pytest.fixture
def counts() -> WorkerCounts:
    """The counts of a supervisor."""
    return WorkerCounts(TABLE)


def open_fds() -> set[str]:
    """What this process has open, by number and target."""
    found = {f"{fd.name} {fd.readlink()}" for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return {fd for fd in found if " /proc/" not in fd}  # the look itself


def children() -> set[str]:
    """The child processes of this thread, not waited for."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


async def ended(worker: WorkerProcess) -> int:
    """Wait for the end of *worker*; return its exit code."""
    code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    worker.on_exit = code.set_result
    async with asyncio.timeout(TIMEOUT_S):
        return await code


def test_process__hears_the_last_words_and_keeps_the_counts(
    config: Config, counts: WorkerCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that reports, counts and ends within one turn of the loop loses none of the three."""
    monkeypatch.setattr(process, "MODULE", child.__name__)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")

    async def run() -> WorkerProcess:
        worker = WorkerProcess(4, config, LISTEN, counts)
        assert worker.end_timeout_s == 2.5 + END_GRACE_S
        assert await ended(worker) == child.EXIT_CODE
        return worker

    worker = asyncio.run(run())
    facts = {name: component.state for name, component in worker.report.components.items()}
    assert facts == {"index": "4", "notify": "-", "leads its group": "True", "standard input": os.devnull}
    assert worker.report.served == LISTEN
    assert counts.totals()[PAUSES] == child.COUNTED


def test_process__leaves_nothing_open(
    config: Config, counts: WorkerCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its end the supervisor has what it had before: a crash loop costs no file descriptors."""
    monkeypatch.setattr(process, "MODULE", child.__name__)

    async def run() -> tuple[set[str], set[str]]:
        before = open_fds()
        await asyncio.gather(*(ended(WorkerProcess(index, config, LISTEN, counts)) for index in range(3)))
        return before, open_fds()

    before, after = asyncio.run(run())
    assert after <= before, "descriptors that were not there before"
    assert counts.totals()[PAUSES] == 3 * child.COUNTED


def test_process__can_be_killed_from_its_first_moment(config: Config, counts: WorkerCounts) -> None:
    """Whatever it is doing; and signals to one that has ended are nothing."""

    async def run() -> int:
        worker = WorkerProcess(0, config, LISTEN, counts)
        worker.kill()
        worker.kill()
        return await ended(worker)

    assert asyncio.run(run()) == -9


def refuse(*arguments: object, **named: object) -> None:
    """What the system says when a process has used up its file descriptors."""
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("step", ["memory", "socket", "program", "pidfd"])
def test_process__a_start_that_fails_leaves_nothing(
    config: Config, counts: WorkerCounts, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whichever step the system refuses: no process, no file descriptor, no block of counts is left."""
    targets: dict[str, tuple[object, str, object]] = {
        "memory": (os, "memfd_create", refuse),
        "socket": (socket, "socketpair", refuse),
        "program": (sys, "executable", "/nonexistent/python"),
        "pidfd": (os, "pidfd_open", refuse),
    }

    async def run() -> tuple[set[str], set[str]]:
        before = open_fds() | children()
        with monkeypatch.context() as patched, pytest.raises(OSError) as raised:
            patched.setattr(*targets[step])
            WorkerProcess(0, config, LISTEN, counts)
        assert raised.value.errno in (errno.EMFILE, errno.ENOENT)
        return before, open_fds() | children()

    before, after = asyncio.run(run())
    assert after == before


def test_path_flags__the_working_directory_is_on_the_path_only_if_it_is_on_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file of that name where the service happens to run must not become part of it."""
    monkeypatch.setattr(sys, "path", ["/usr/lib/python3"])
    assert process.path_flags() == ("-P",)
    monkeypatch.setattr(sys, "path", ["/usr/lib/python3", str(Path.cwd())])
    assert process.path_flags() == ()

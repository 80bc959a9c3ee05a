"""Functions of the operating system: CPUs, open files, reaping of orphans, states for systemd."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from sidecar.process.settings import WORKERS_MAX

CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
"""The container's CPU quota: '<quota µs> <period µs>', 'max' = no quota (cgroup v2, cpu.max)."""


def worker_count(workers: int | Literal["auto"]) -> int:
    """The number of workers that the setting *workers* means; 'auto' = one a usable CPU."""
    return min(WORKERS_MAX, usable_cpus()) if workers == "auto" else workers


def usable_cpus(quota_file: Path = CPU_QUOTA_FILE) -> int:
    """How many CPUs this process may use: its affinity, limited by its container's CPU quota."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2, or no quota
        return cpus


FILES_WANTED = 65_536
"""Room for the connections of every listener and of the store; more slows programs that close all of them."""


def raise_open_files_limit() -> int:
    """
    Raise the soft limit of open files as far as the hard limit allows; return the limit in force.

    Child processes inherit it. Many systems start services with a soft limit of 1,024, for select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


PR_GET_CHILD_SUBREAPER = 37


class OrphanReaper:
    """
    Reaps ended children that this process did not start; `cpu_us` is the CPU time that they used.

    The first process of a container (PID 1) becomes the parent of every orphan in it, such as what a probe
    or `docker exec` leaves behind; without a wait, an ended orphan stays in the process table as a zombie.
    The kernel adds the CPU time of reaped orphans to that of the workers, so it is counted here.

    Source: wait(2), PR_SET_CHILD_SUBREAPER in prctl(2), proc(5).
    """

    def __init__(self, own_pids: Callable[[], Collection[int]] = tuple) -> None:
        """*own_pids* returns the children that the caller waits for itself."""
        self._own_pids = own_pids
        self.cpu_us = 0

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reap orphans now and whenever a child ends, if this process inherits any."""
        if _inherits_orphans():
            # Not `loop.add_signal_handler`: uvloop keeps SIGCHLD for itself.
            signal.signal(signal.SIGCHLD, lambda number, frame: self._reap_soon(loop))
            self.reap()

    def _reap_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self.reap)

    def reap(self) -> None:
        """Reap every ended orphan."""
        own_pids = self._own_pids()
        for pid in _ended_children():
            if pid in own_pids:
                continue
            try:
                _, _, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:
                continue  # already reaped
            self.cpu_us += round(usage.ru_utime * 1e6) + round(usage.ru_stime * 1e6)


def _inherits_orphans() -> bool:
    if os.getpid() == 1:
        return True
    is_subreaper = ctypes.c_int()
    failed = ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(is_subreaper), 0, 0, 0)
    return not failed and is_subreaper.value == 1


def _ended_children() -> list[int]:
    """The zombies among this process's children."""
    parent = str(os.getpid())
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name in brackets may contain anything; the state and the parent follow it.
            state, parent_pid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # already reaped
        if state == "Z" and parent_pid == parent:
            found.append(int(folder.name))
    return found


_log = logging.getLogger("sidecar.process")


READY, STOPPING = "READY=1", "STOPPING=1"
"""States of a service for `notify_systemd`. Source: sd_notify(3)."""


def reloading() -> str:
    """Return the state of a service that reloads now; it must be followed by READY. Source: sd_notify(3)."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}"


def notify_systemd(state: str) -> None:
    """Send *state* to systemd (`Type=notify` or `notify-reload`), if systemd started this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            sender.send(state.encode())
    except OSError as error:
        _log.warning("%s could not be sent to systemd: %s", state.partition("\n")[0], error.strerror)

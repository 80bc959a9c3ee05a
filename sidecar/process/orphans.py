"""
Reaps the processes that the kernel hands to this one when their parent ends.

The first process of a container (PID 1) becomes the parent of every orphan in it, such as what a probe or
`docker exec` leaves behind. An orphan that nobody waits for stays in the process table as a zombie.

Source: wait(2), PR_SET_CHILD_SUBREAPER in prctl(2), proc(5).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path

PR_GET_CHILD_SUBREAPER = 37


class OrphanReaper:
    """
    Reaps ended children that this process did not start; `cpu_us` is the CPU time that they used.

    That time is in the kernel's account of waited-for children, beside that of the workers.
    """

    def __init__(self, own_pids: Callable[[], Collection[int]] = tuple) -> None:
        """*own_pids* names the children that the caller started and waits for itself."""
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
                continue  # reaped by somebody else in the meantime
            self.cpu_us += round(usage.ru_utime * 1e6) + round(usage.ru_stime * 1e6)


def _inherits_orphans() -> bool:
    if os.getpid() == 1:
        return True
    is_subreaper = ctypes.c_int()
    failed = ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(is_subreaper), 0, 0, 0)
    return not failed and is_subreaper.value == 1


def _ended_children() -> list[int]:
    """The zombies whose parent this process is."""
    parent = str(os.getpid())
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name in brackets may hold anything; after it come the state and the parent.
            state, parent_pid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just been reaped
        if state == "Z" and parent_pid == parent:
            found.append(int(folder.name))
    return found

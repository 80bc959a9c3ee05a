"""
A program that writes to a registry and is killed while it does: `python -m tests.fault.registry.victim`.

It reads one job a line from standard input, as JSON, and makes a separate process for each, so that a
death costs no start of Python. Each answer is one line: whether that process was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from sidecar.stores.registry.sqlite.file import connect
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import LIFECYCLE
from tests.building import ManualClock
from tests.fault.registry.writes import WRITES

OPEN = "open"
"""The name of the job that opens a new registry, and so makes its tables."""


class StatementKiller:
    """Kills this process, with SIGKILL, before the n-th statement from when it is armed."""

    def __init__(self, statement: int) -> None:
        """Kill before statement number *statement*."""
        self._remaining = statement
        self.is_armed = False

    def connect(self, path: Path) -> sqlite3.Connection:
        """A connection whose statements count."""
        database = connect(path)
        database.set_trace_callback(self._count)
        return database

    def _count(self, statement: str) -> None:
        if self.is_armed:
            self._remaining -= 1
            if self._remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)


async def write(path: Path, name: str, statement: int) -> None:
    """Make the write *name* on the registry at *path*, unless killed before."""
    killer = StatementKiller(statement)
    killer.is_armed = name == OPEN
    registry = await SqliteRegistry.open(path, LIFECYCLE, clock_us=ManualClock(), connect=killer.connect)
    if name != OPEN:
        killer.is_armed = True
        await WRITES[name][1](registry)
    await registry.aclose()


def killed_in_a_child(run: Callable[[], None]) -> bool:
    """Run *run* in a separate process; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        raise SystemExit(f"the victim failed instead of being killed: status {status}")
    return False


def main() -> None:
    """Answer jobs until standard input ends."""
    for line in sys.stdin:
        job = json.loads(line)
        write_job = write(Path(job["path"]), job["name"], job["statement"])
        print(json.dumps(killed_in_a_child(lambda job=write_job: asyncio.run(job))), flush=True)  # type: ignore[misc]
        write_job.close()


if __name__ == "__main__":
    main()

"""
A program that writes to a registry in Redis and is killed: `python -m tests.fault.registry_redis.victim`.

It reads one job a line from standard input, as JSON, and makes a separate process for each, so that a
death costs no start of Python. Each answer is one line: whether that process was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable

from sidecar.stores.redis.link import Link, Receiver
from sidecar.stores.redis.urls import parse_store_url
from tests.fault.registry.victim import killed_in_a_child
from tests.fault.registry.writes import WRITES
from tests.fault.registry_redis.kept import opened


class LinkKiller:
    """Kills this process, with SIGKILL, after the n-th message to Redis, or when half of it has left."""

    def __init__(self, message: int, is_half: bool) -> None:
        """Kill at message number *message*; 0 = before the first."""
        self._remaining = message
        self._is_half = is_half
        self._send = Link.send

    def arm(self) -> None:
        """Watch every link of this process."""
        if self._remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        killer = self

        def send(link: Link, commands: bytes, receivers: Iterable[Receiver]) -> None:
            killer.send(link, commands, receivers)

        Link.send = send  # type: ignore[method-assign, assignment]

    def send(self, link: Link, commands: bytes, receivers: Iterable[Receiver]) -> None:
        """Send as ever, and perhaps never again."""
        self._remaining -= 1
        is_last = self._remaining == 0
        self._send(link, commands[: len(commands) // 2] if is_last and self._is_half else commands, receivers)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)  # the kernel has what was sent, and delivers it


async def write(url: str, name: str, message: int, is_half: bool) -> None:
    """Make the write *name* on the registry at *url*, unless killed before."""
    LinkKiller(message, is_half).arm()
    registry = opened(parse_store_url(url))
    await WRITES[name][1](registry)
    await registry.aclose()


def main() -> None:
    """Answer jobs until standard input ends."""
    for line in sys.stdin:
        job = json.loads(line)
        was_killed = killed_in_a_child(lambda job=job: asyncio.run(write(**job)))  # type: ignore[misc]
        print(json.dumps(was_killed), flush=True)


if __name__ == "__main__":
    main()

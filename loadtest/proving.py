"""Shared parts of the programs that verify promises: the event loop, a Redis server, percentiles."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import uvloop

from loadtest.redis_servers import RedisServer
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.urls import StoreUrl
from sidecar.stores.registry.redis.nodes import Nodes

Result = TypeVar("Result")

EXIT_KEPT, EXIT_BROKEN = 0, 1
FORGET_TIMEOUT_S = 30.0
SCAN_COUNT = 1_000


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """
    Run *work* on uvloop; SIGTERM and Ctrl-C cancel it, so that it stops its child processes.

    Raises:
        CancelledError, KeyboardInterrupt: a signal ended it.
    """

    async def guarded() -> Result:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(guarded())


@contextmanager
def redis_at(url: str) -> Iterator[str]:
    """Yield the URL of a Redis: *url*, or if it is '' a new server, which stops with the block."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="sidecar-redis-") as folder:
        server = RedisServer(Path(folder)).start()
        try:
            yield server.url
        finally:
            server.stop()


async def forget_keys(url: StoreUrl) -> None:
    """
    Delete every key with the prefix of *url*, partition by partition, as a Cluster requires.

    Raises:
        RegistryError: the store does not answer.
    """
    space = KeySpace(url.prefix, url.partitions)
    nodes = Nodes(url, space)
    deadline_s = monotonic() + FORGET_TIMEOUT_S
    try:
        await nodes.learn_layout(deadline_s)
        for partition in range(space.partitions):
            pattern, cursor = f"{_escaped(space.named(partition, ''))}*", b"0"
            while True:
                command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
                [(cursor, keys)] = await nodes.run(partition, [command], deadline_s)
                if keys:
                    await nodes.run(partition, [("UNLINK", *keys)], deadline_s)
                if cursor == b"0":
                    break
    finally:
        await nodes.close()


def percentile(ordered: Sequence[float], share: float) -> float:
    """
    Return the value that *share* (0 ... 1) of *ordered* do not exceed.

    >>> percentile([1, 2, 3, 4], 0.5)
    2
    """
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


def _escaped(text: str) -> str:
    """Escape the special characters of MATCH in *text*."""
    return "".join(f"\\{character}" if character in "*?[]^\\" else character for character in text)

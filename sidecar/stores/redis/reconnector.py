"""Keeping a pipeline connected: connect, wait until the link ends, connect anew, for as long as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from sidecar.stores.redis.connect import CONNECT_ERRORS
from sidecar.stores.redis.counts import StoreCounts
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.node_pipeline import NodePipeline

log = logging.getLogger(__name__)


class Reconnector:
    """
    Keeps *pipeline* connected by *connect*, from `start` to `close`.

    `tried` is done when the first attempt has ended, well or not.
    """

    def __init__(
        self,
        pipeline: NodePipeline,
        connect: Callable[[], Awaitable[Link]],
        limits: StoreLimits,
        counts: StoreCounts,
    ) -> None:
        """Nothing is opened before `start`."""
        self.pipeline = pipeline
        self.tried = asyncio.Event()
        self._connect = connect
        self._limits = limits
        self._counts = counts
        self._backoff = limits.backoff()
        self._told = ""
        self._hurried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(
            self._keep(), name=f"store link {self.pipeline.name}"
        )

    def hurry(self) -> None:
        """It is known now where to connect: do not wait any longer."""
        self._backoff.reset()
        self._hurried.set()

    async def close(self) -> None:
        """End the link and the attempts."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._limits.close_timeout_s)
        self.pipeline.close()

    async def _keep(self) -> None:
        while True:
            self._hurried.clear()
            began_s = monotonic()
            link = await self._try()
            self.tried.set()
            wait_s = await self._follow(link) if link is not None else self._backoff.next_s()
            await self._pause(max(wait_s, began_s + self._limits.reopen_interval_s - monotonic()))

    async def _follow(self, link: Link) -> float:
        """
        Use *link* until it ends; the wait before the next attempt.

        A connection that the server or the network ended is reopened at once. One that we gave up, because
        the server is a replica or sends garbage, would be given up again.
        """
        began_s = monotonic()
        self.pipeline.attach(link)
        try:
            await asyncio.shield(link.lost)
        finally:
            self.pipeline.detach()
            is_given_up = link.is_given_up
            link.abort()
        if is_given_up and monotonic() - began_s < self._limits.steady_s:
            return self._backoff.next_s()
        self._backoff.reset()
        return 0.0

    async def _pause(self, wait_s: float) -> None:
        """Wait, unless it becomes known meanwhile where to connect."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurried.wait()

    async def _try(self) -> Link | None:
        try:
            link = await self._connect()
        except CONNECT_ERRORS as error:
            self._counts.values[self._counts.failed_connects] += 1
            trouble = str(error) or type(error).__name__
            self._tell(trouble)
            self.pipeline.fail(trouble)
            return None
        self._counts.values[self._counts.connects] += 1
        if self._told:
            log.info("connected to the store at %s", self.pipeline.name)
            self._told = ""
        return link

    def _tell(self, trouble: str) -> None:
        """Say a trouble once, not at every attempt."""
        if trouble != self._told:
            log.warning("cannot connect to the store at %s: %s; trying again", self.pipeline.name, trouble)
            self._told = trouble

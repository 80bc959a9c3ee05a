"""Keep a pipeline connected: connect, wait until the link ends, reconnect."""

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
    Keeps *pipeline* connected with *connect*, from `start` to `close`.

    `tried` is set when the first attempt has succeeded or failed.
    """

    def __init__(
        self,
        pipeline: NodePipeline,
        connect: Callable[[], Awaitable[Link]],
        limits: StoreLimits,
        counts: StoreCounts,
    ) -> None:
        """Connect only at `start`."""
        self.pipeline = pipeline
        self.tried = asyncio.Event()
        self._connect = connect
        self._limits = limits
        self._counts = counts
        self._backoff = limits.backoff()
        self._logged_trouble = ""
        self._retry_requested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to connect."""
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"store link {self.pipeline.name}"
        )

    def retry_now(self) -> None:
        """End the current wait, because the address to connect to is known now."""
        self._backoff.reset()
        self._retry_requested.set()

    async def close(self) -> None:
        """Close the link and stop reconnecting."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._limits.close_timeout_s)
        self.pipeline.close()

    async def _run(self) -> None:
        while True:
            self._retry_requested.clear()
            began_s = monotonic()
            link = await self._try()
            self.tried.set()
            wait_s = await self._follow(link) if link is not None else self._backoff.next_s()
            await self._pause(max(wait_s, began_s + self._limits.reopen_interval_s - monotonic()))

    async def _follow(self, link: Link) -> float:
        """
        Use *link* until it ends; return the wait before the next attempt.

        A connection that the server or the network ended is reopened at once. One that this side aborted,
        because the server is a replica or sent invalid data, is likely to be aborted again.
        """
        began_s = monotonic()
        self.pipeline.attach(link)
        try:
            await asyncio.shield(link.lost)
        finally:
            self.pipeline.detach()
            is_aborted = link.is_aborted
            link.abort()
        if is_aborted and monotonic() - began_s < self._limits.steady_s:
            return self._backoff.next_s()
        self._backoff.reset()
        return 0.0

    async def _pause(self, wait_s: float) -> None:
        """Wait for *wait_s* or until `retry_now` is called."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._retry_requested.wait()

    async def _try(self) -> Link | None:
        try:
            link = await self._connect()
        except CONNECT_ERRORS as error:
            self._counts.values[self._counts.failed_connects] += 1
            trouble = str(error) or type(error).__name__
            self._log_trouble(trouble)
            self.pipeline.fail(trouble)
            return None
        self._counts.values[self._counts.connects] += 1
        if self._logged_trouble:
            log.info("connected to the store at %s", self.pipeline.name)
            self._logged_trouble = ""
        return link

    def _log_trouble(self, trouble: str) -> None:
        """Log *trouble* when it has changed, not at every attempt."""
        if trouble != self._logged_trouble:
            log.warning("cannot connect to the store at %s: %s; retrying", self.pipeline.name, trouble)
            self._logged_trouble = trouble

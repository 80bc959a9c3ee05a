"""One primary for all keys: a standalone server, or the primary that the Sentinels name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from sidecar.stores.redis.connect import Connector
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.node_pipeline import NodePipeline, PipelineParts
from sidecar.stores.redis.reconnector import Reconnector
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.sentinels import SentinelWatch
from sidecar.stores.redis.take_call import AnyGroup
from sidecar.stores.redis.urls import Address, StoreTopology

log = logging.getLogger(__name__)


class SingleTopology:
    """
    One pipeline that serves every partition.

    A former primary may accept writes for up to ten seconds, until a Sentinel makes it a replica. So its
    connection is closed as soon as a Sentinel names another primary.
    """

    def __init__(self, connector: Connector, parts: PipelineParts) -> None:
        """Connect only at `start`."""
        url = connector.url
        self._connector = connector
        self._counts = parts.counts
        self._check_link = parts.check_link
        self._pipeline = NodePipeline(str(url), parts)
        self._reconnector = Reconnector(self._pipeline, self._open, connector.limits, parts.counts)
        self._watch: SentinelWatch | None = None
        if url.kind is StoreTopology.SENTINEL:
            self._watch = SentinelWatch(connector, self._moved, self._followed)
        self._run_id = ""
        self.pipelines = [self._pipeline] * connector.keys.partitions

    def start(self) -> None:
        """Start to connect."""
        if self._watch is not None:
            self._watch.start()
        self._reconnector.start()

    async def tried(self) -> None:
        """Wait until the first attempt has succeeded or failed."""
        await self._reconnector.tried.wait()

    async def close(self) -> None:
        """Close the connection."""
        if self._watch is not None:
            await self._watch.close()
        await self._reconnector.close()

    @property
    def trouble(self) -> str:
        """See `Topology`."""
        return self._pipeline.trouble

    def search(self) -> None:
        """Query the Sentinels, because the primary may have changed."""
        if self._watch is not None:
            self._watch.query_soon()

    @property
    def is_whole(self) -> bool:
        """See `Topology`."""
        return self._pipeline.refusal is None

    def count_unserved(self) -> None:
        """Do nothing: all partitions have the same pipeline."""

    def redirected(self, pipeline: NodePipeline, groups: Sequence[AnyGroup], error: ErrorReply) -> bool:
        """See `Topology`: there is no other node."""
        self.search()
        return False

    def release_waiting(self) -> None:
        """See `Topology`."""
        self._pipeline.release_waiting()

    def _moved(self, primary: Address) -> None:
        """Reconnect to *primary*, which the Sentinels name now."""
        self._connector.cancel_other_attempts(primary)
        link = self._pipeline.link
        if link is not None and link.address != primary:
            self._counts.values[self._counts.primary_changes] += 1
            link.disconnect()
        self._reconnector.retry_now()

    def _followed(self, sentinels: int) -> None:
        self._counts.values[self._counts.sentinels] = sentinels

    async def _open(self) -> Link:
        if self._watch is None:
            return await self._prepare(await self._connector.open(self._connector.url.addresses[0]))
        await self._watch.ask()
        assert self._watch.primary is not None
        link = await self._prepare(await self._connector.open(self._watch.primary))
        if link.address != self._watch.primary:
            link.abort()
            raise ConnectionError(f"{link.address} is no longer the primary")
        if self._run_id and link.run_id != self._run_id:
            log.info("the primary %s runs a new process: run id %s", link.address, link.run_id)
        self._run_id = link.run_id
        return link

    async def _prepare(self, link: Link) -> Link:
        try:
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                await self._connector.agree_on_layout(link)
            self.pipelines[:] = [self._pipeline] * self._connector.keys.partitions
            await self._check_link(link, range(self._connector.keys.partitions))
        except BaseException:
            link.abort()
            raise
        return link

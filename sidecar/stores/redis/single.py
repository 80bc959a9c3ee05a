"""One primary for every key: a standalone server, or the one that Sentinel names."""

from __future__ import annotations

import asyncio

from sidecar.stores.redis.connect import Connector
from sidecar.stores.redis.keeper import Keeper
from sidecar.stores.redis.lane import Lane, LaneParts
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.urls import Kind


class SingleTopology:
    """
    One lane that serves every partition.

    A primary that Sentinel has demoted or that died ends our link, for Sentinel closes the clients of a
    server it reconfigures; the next attempt asks Sentinel again.
    """

    def __init__(self, connector: Connector, parts: LaneParts) -> None:
        """Nothing is opened before `start`."""
        url = connector.url
        self._connector = connector
        self._lane = Lane(str(url), parts)
        connect = self._find_primary if url.kind is Kind.SENTINEL else self._open
        self._keeper = Keeper(self._lane, connect, connector.limits, parts.counts)
        self.lanes = [self._lane] * connector.keys.partitions

    def start(self) -> None:
        """Begin to connect."""
        self._keeper.start()

    async def tried(self) -> None:
        """Wait until the first attempt has ended, well or not."""
        await self._keeper.tried.wait()

    async def close(self) -> None:
        """End the connection."""
        await self._keeper.close()

    @property
    def trouble(self) -> str:
        """See `Topology`."""
        return self._lane.trouble

    def search(self) -> None:
        """The primary is elsewhere: the lane drops its link, and the keeper asks anew."""

    async def _open(self) -> Link:
        return await self._prepare(await self._connector.open(self._connector.url.addresses[0]))

    async def _find_primary(self) -> Link:
        return await self._prepare(await self._connector.open_primary())

    async def _prepare(self, link: Link) -> Link:
        try:
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                await self._connector.agree_on_layout(link)
        except BaseException:
            link.abort()
            raise
        return link

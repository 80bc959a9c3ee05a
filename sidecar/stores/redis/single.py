"""One primary for every key: a standalone server, or the one that Sentinel names."""

from __future__ import annotations

import asyncio

from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, HandshakeError
from sidecar.stores.redis.keeper import Keeper
from sidecar.stores.redis.lane import Lane, LaneParts
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.urls import Address, Kind


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
        self._sentinels = list(url.addresses)
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

    def search(self) -> None:
        """The primary is elsewhere: the lane drops its link, and the keeper asks anew."""

    async def _open(self) -> Link:
        return await self._prepare(await self._connector.open(self._sentinels[0]))

    async def _find_primary(self) -> Link:
        address = await self._ask_sentinels()
        link = await self._connector.open(address)
        try:
            role = await asyncio.wait_for(link.request("ROLE"), self._connector.limits.discovery_timeout_s)
            if not role or role[0] != b"master":
                raise HandshakeError(f"Sentinel names {address} as the primary, but it is none (yet)")
        except BaseException:
            link.abort()
            raise
        return await self._prepare(link)

    async def _prepare(self, link: Link) -> Link:
        try:
            async with asyncio.timeout(self._connector.limits.discovery_timeout_s):
                await self._connector.agree_on_layout(link)
        except BaseException:
            link.abort()
            raise
        return link

    async def _ask_sentinels(self) -> Address:
        """Ask one after another; the one that knew is asked first next time."""
        url = self._connector.url
        troubles = []
        for sentinel in tuple(self._sentinels):
            try:
                found = await self._connector.ask(
                    sentinel, url.sentinel_login, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.service
                )
            except CONNECT_ERRORS as error:
                troubles.append(f"{sentinel}: {error or type(error).__name__}")
                continue
            if found:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return Address(found[0].decode(), int(found[1]))
            troubles.append(f"{sentinel}: does not know the service {url.service!r}")
        raise HandshakeError(f"no Sentinel names a primary: {'; '.join(troubles)}")

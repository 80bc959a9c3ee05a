"""Opening links: TCP, TLS or Unix, then login, database and scripts, all within one time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.scripts import SCRIPTS, Script
from sidecar.stores.redis.urls import Address, Login, StoreUrl, StoreUrlError

CLIENT_NAME = "sidecar"


class HandshakeError(ConnectionError):
    """The server is there but cannot be used; says why and what to do."""


CONNECT_ERRORS = (OSError, ErrorReply, StoreUrlError)
"""What connecting may end with (TimeoutError and LinkLostError are OSErrors); else it is a fault of ours."""


class Connector:
    """Opens links to the servers of one store URL."""

    def __init__(
        self,
        url: StoreUrl,
        keys: KeySpace,
        limits: StoreLimits,
        scripts: Sequence[Script] = SCRIPTS,
        link: type[Link] = Link,
    ) -> None:
        """Use the login, the TLS files and the database of *url*; links are of class *link*."""
        self.url = url
        self.keys = keys
        self.limits = limits
        self._scripts = scripts
        self._link = link
        self._sentinels = list(url.addresses)

    async def open(self, address: Address) -> Link:
        """
        A link to a server that knows our scripts.

        Raises:
            OSError, ErrorReply, StoreUrlError: there is none; TimeoutError is an OSError.
        """
        async with asyncio.timeout(self.limits.connect_timeout_s):
            link = await self._connect(address)
            try:
                await _login(link, self.url.login)
                if self.url.database:
                    await link.request("SELECT", self.url.database)
                await _load_scripts(link, self._scripts)
            except BaseException:
                link.abort()
                raise
            return link

    async def ask(self, address: Address, login: Login, *words: str) -> Any:
        """
        The reply of a server that is asked once, such as a Sentinel.

        Raises:
            As `open` does.
        """
        async with asyncio.timeout(self.limits.discovery_timeout_s):
            link = await self._connect(address)
            try:
                await _login(link, login)
                return await link.request(*words)
            finally:
                link.abort()

    async def open_primary(self) -> Link:
        """
        A link to the primary that Sentinel names.

        Raises:
            As `open` does; also when the server that Sentinel names is no primary (yet).
        """
        address = await self._ask_sentinels()
        link = await self.open(address)
        try:
            role = await asyncio.wait_for(link.request("ROLE"), self.limits.discovery_timeout_s)
            if not role or role[0] != b"master":
                raise HandshakeError(f"Sentinel names {address} as the primary, but it is none (yet)")
        except BaseException:
            link.abort()
            raise
        return link

    async def agree_on_layout(self, link: Link) -> None:
        """
        Make sure that the fleet's sidecars use the same number of partitions; the first one sets it.

        Raises:
            HandshakeError: the keys there have another layout.
            ErrorReply: the server cannot say.
        """
        await link.request("SET", self.keys.layout_key, self.keys.layout, "NX")
        found = await link.request("GET", self.keys.layout_key)
        if found != self.keys.layout.encode():
            text = (found or b"nothing").decode(errors="replace")
            raise HandshakeError(
                f"the keys under prefix {self.keys.prefix!r} have the layout {text!r}, ours is"
                f" {self.keys.layout!r}: give every sidecar the same 'partitions', or another prefix"
            )

    async def _ask_sentinels(self) -> Address:
        """Ask one after another; the one that knew is asked first next time."""
        troubles = []
        for sentinel in tuple(self._sentinels):
            try:
                found = await self.ask(
                    sentinel, self.url.sentinel_login, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.url.service
                )
            except CONNECT_ERRORS as error:
                troubles.append(f"{sentinel}: {error or type(error).__name__}")
                continue
            if found:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return Address(found[0].decode(), int(found[1]))
            troubles.append(f"{sentinel}: does not know the service {self.url.service!r}")
        raise HandshakeError(f"no Sentinel names a primary: {'; '.join(troubles)}")

    async def _connect(self, address: Address) -> Link:
        loop = asyncio.get_running_loop()

        def protocol() -> Link:
            return self._link(loop, self.limits.reply_bytes_max)

        if address.path:
            _, link = await loop.create_unix_connection(protocol, address.path)
            return link
        tls = self.url.tls
        if tls is None:
            _, link = await loop.create_connection(protocol, address.host, address.port)
            return link
        name = tls.server_name or address.host
        _, link = await loop.create_connection(
            protocol, address.host, address.port, ssl=tls.context(), server_hostname=name
        )
        return link


async def _login(link: Link, login: Login) -> None:
    words = login.read()
    if words:
        await link.request("AUTH", *words)
    try:
        await link.request("CLIENT", "SETNAME", CLIENT_NAME)
    except ErrorReply as error:
        if error.code == "NOAUTH":
            raise
        # A name is a courtesy to whoever reads CLIENT LIST; the ACL may forbid it.


async def _load_scripts(link: Link, scripts: Sequence[Script]) -> None:
    replies = await asyncio.gather(*(link.request("SCRIPT", "LOAD", script.source) for script in scripts))
    for script, sha in zip(scripts, replies, strict=True):
        if sha != script.sha:
            raise HandshakeError(f"the server knows {script.name} as {sha!r}, not as {script.sha!r}")

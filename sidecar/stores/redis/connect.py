"""Opening links: TCP, TLS or Unix, then login, database and scripts, all within one time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sidecar.stores.redis.diagnosis import diagnose
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.scripts import SCRIPTS, Script
from sidecar.stores.redis.server_info import ServerInfo, evicts, misfit, not_a_sentinel
from sidecar.stores.redis.urls import Address, Login, StoreUrl, StoreUrlError

CLIENT_NAME = "sidecar"

log = logging.getLogger(__name__)


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
        *,
        holds_registry: bool = False,
    ) -> None:
        """
        Use the login, the TLS files and the database of *url*; links are of class *link*.

        *holds_registry*: a server that may evict keys is refused, not only warned of. `on_policy` is told
        the evicting maxmemory-policy of each server, '' = it evicts nothing.
        """
        self.url = url
        self.holds_registry = holds_registry
        self.on_policy: Callable[[Address, str], None] = lambda address, policy: None
        self._is_blind = False
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
        link: Link | None = None
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                link = await self._connect(address)
                await _login(link, self.url.login)
                self._check(address, await self._info(link))
                if self.url.database:
                    await link.request("SELECT", self.url.database)
                await _load_scripts(link, self._scripts)
                return link
        except HandshakeError:
            _abort(link)
            raise
        except CONNECT_ERRORS as error:
            _abort(link)
            cause = link.error if link is not None and link.error is not None else error
            limit_s = self.limits.connect_timeout_s
            raise HandshakeError(await diagnose(self.url, address, cause, limit_s)) from error
        except BaseException:
            _abort(link)
            raise

    async def look(self, link: Link) -> None:
        """
        Look again at a server that is in use: its maxmemory-policy may have been changed.

        Raises:
            LinkLostError, TimeoutError: it does not say.
        """
        async with asyncio.timeout(self.limits.discovery_timeout_s):
            info = await self._info(link)
        if info is not None:
            self.on_policy(link.address, info.evicting_policy)

    async def _info(self, link: Link) -> ServerInfo | None:
        """What the server tells of itself; None = it may not tell us."""
        try:
            return ServerInfo.parse(await link.request("INFO"))
        except ErrorReply as error:
            if error.code in ("NOAUTH", "LOADING", "DENIED"):
                raise
            if not self._is_blind:
                self._is_blind = True
                log.warning(
                    "the store at %s does not answer INFO (%s): whether it may evict keys and whether the URL"
                    " fits the server is not known; allow +info",
                    self.url,
                    error,
                )
            return None

    def _check(self, address: Address, info: ServerInfo | None) -> None:
        """
        Refuse a server that the URL does not fit, or that may evict the registry.

        Raises:
            HandshakeError: says what it is, and what would work.
        """
        if info is None:
            return
        if trouble := misfit(self.url, address, info):
            raise HandshakeError(trouble)
        policy = info.evicting_policy
        self.on_policy(address, policy)
        if policy and self.holds_registry:
            raise HandshakeError(evicts(address, policy, holds_registry=True))

    async def ask(self, address: Address, login: Login, *words: str) -> Any:
        """
        The reply of a server that is asked once, such as a Sentinel.

        Raises:
            As `open` does.
        """
        link: Link | None = None
        try:
            async with asyncio.timeout(self.limits.discovery_timeout_s):
                link = await self._connect(address)
                await _login(link, login)
                try:
                    return await link.request(*words)
                except ErrorReply:
                    if trouble := await self._misfit(link, address, words[0]):
                        raise HandshakeError(trouble) from None
                    raise
        except HandshakeError:
            raise
        except CONNECT_ERRORS as error:
            cause = link.error if link is not None and link.error is not None else error
            limit_s = self.limits.discovery_timeout_s
            raise HandshakeError(await diagnose(self.url, address, cause, limit_s)) from error
        finally:
            _abort(link)

    async def _misfit(self, link: Link, address: Address, command: str) -> str:
        """Why a server does not know *command*; '' = it does not say."""
        info = await self._info(link)
        if info is None:
            return ""
        judge = not_a_sentinel if command == "SENTINEL" else misfit
        return judge(self.url, address, info)

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

    async def _unknown_service(self, sentinel: Address) -> str:
        """What a Sentinel knows instead of the service of the URL."""
        login = self.url.sentinel_login
        try:
            info = ServerInfo.parse(await self.ask(sentinel, login, "INFO"))
        except HandshakeError:
            info = ServerInfo({"redis_mode": "sentinel"})
        return not_a_sentinel(self.url, sentinel, info)

    async def _ask_sentinels(self) -> Address:
        """Ask one after another; the one that knew is asked first next time."""
        troubles = []
        for sentinel in tuple(self._sentinels):
            try:
                found = await self.ask(
                    sentinel, self.url.sentinel_login, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.url.service
                )
            except CONNECT_ERRORS as error:
                troubles.append(str(error))
                continue
            if found:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return Address(found[0].decode(), int(found[1]))
            troubles.append(await self._unknown_service(sentinel))
        raise HandshakeError("; ".join(troubles))

    async def _connect(self, address: Address) -> Link:
        loop = asyncio.get_running_loop()

        def protocol() -> Link:
            return self._link(loop, self.limits.reply_bytes_max)

        tls = self.url.tls
        if address.path:
            _, link = await loop.create_unix_connection(protocol, address.path)
        elif tls is None:
            _, link = await loop.create_connection(protocol, address.host, address.port)
        else:
            name = tls.server_name or address.host
            _, link = await loop.create_connection(
                protocol, address.host, address.port, ssl=tls.context(), server_hostname=name
            )
        link.address = address
        return link


def _abort(link: Link | None) -> None:
    if link is not None:
        link.abort()


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

"""Opening links: TCP, TLS or Unix socket, then login, database and scripts, all within one timeout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sidecar.stores.redis.diagnosis import diagnose
from sidecar.stores.redis.keys import CLUSTER_PARTITIONS, KeySpace, layout_of, read_layout
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link, LinkLostError
from sidecar.stores.redis.replies import ErrorReply, advice_of
from sidecar.stores.redis.scripts import SCRIPTS, Script
from sidecar.stores.redis.server_info import ServerInfo, eviction_problem, sentinel_problem, topology_mismatch
from sidecar.stores.redis.urls import Address, Login, StoreTopology, StoreUrl, StoreUrlError

CLIENT_NAME = "sidecar"

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class HandshakeError(ConnectionError):
    """A server was reached but cannot be used; the text says why and what to do."""


CONNECT_ERRORS = (OSError, ErrorReply, StoreUrlError)
"""The errors that connecting may raise; TimeoutError and LinkLostError are OSErrors."""


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

        *holds_registry*: refuse a server that may evict keys. `on_policy` is called with each server's
        maxmemory-policy if it may evict keys, else with ''.
        """
        self.url = url
        self.holds_registry = holds_registry
        self.on_policy: Callable[[Address, str], None] = lambda address, policy: None
        self._is_info_refused = False
        self.keys = keys
        self.limits = limits
        self._scripts = scripts
        self._link = link
        self._openings: dict[asyncio.Task[Link], Address] = {}

    async def open(self, address: Address) -> Link:
        """
        Open a link to a server and load the scripts.

        Raises:
            OSError, ErrorReply, StoreUrlError: connecting failed.
        """
        opening = asyncio.get_running_loop().create_task(self._open(address))
        self._openings[opening] = address
        try:
            return await opening
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise LinkLostError(f"{address} is no longer the primary") from None
        finally:
            del self._openings[opening]

    async def _open(self, address: Address) -> Link:
        async def prepare(link: Link) -> Link:
            info = await self._info(link)
            self._check(address, info)
            link.run_id = info.fields.get("run_id", "") if info is not None else ""
            if self.url.kind is StoreTopology.SENTINEL:
                await _require_primary(link)
            if self.url.database:
                await link.request("SELECT", self.url.database)
            await _load_scripts(link, self._scripts)
            return link

        return await self._reach(address, self.url.login, self.limits.connect_timeout_s, prepare)

    async def _reach(
        self, address: Address, login: Login, timeout_s: float, work: Callable[[Link], Awaitable[Result]]
    ) -> Result:
        """Connect and return the result of *work* within *timeout_s*; close the link if that fails."""
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._connect(address)
                await _login(link, login)
                return await work(link)
        except HandshakeError:
            _abort(link)
            raise
        except CONNECT_ERRORS as error:
            _abort(link)
            cause = link.error if link is not None and link.error is not None else error
            raise HandshakeError(await diagnose(self.url, address, cause, timeout_s)) from error
        except BaseException:
            _abort(link)
            raise

    async def check_policy(self, link: Link) -> None:
        """
        Read the maxmemory-policy of a server in use again: it may have been changed.

        Raises:
            LinkLostError, TimeoutError: the server does not answer.
        """
        async with asyncio.timeout(self.limits.discovery_timeout_s):
            info = await self._info(link)
        if info is not None:
            self.on_policy(link.address, info.evicting_policy)

    async def _info(self, link: Link) -> ServerInfo | None:
        """The server's INFO; None = the ACL forbids it."""
        try:
            return ServerInfo.parse(await link.request("INFO"))
        except ErrorReply as error:
            if error.code in ("NOAUTH", "LOADING", "DENIED"):
                raise
            if not self._is_info_refused:
                self._is_info_refused = True
                log.warning(
                    "the store at %s refuses INFO (%s), so the sidecar cannot check whether the server may"
                    " evict keys and whether the URL fits it; add +info to the ACL user",
                    self.url,
                    error,
                )
            return None

    def _check(self, address: Address, info: ServerInfo | None) -> None:
        """
        Check that the URL fits the server, and that the server cannot evict the registry.

        Raises:
            HandshakeError: the check failed.
        """
        if info is None:
            return
        if trouble := topology_mismatch(self.url, address, info):
            raise HandshakeError(trouble)
        policy = info.evicting_policy
        self.on_policy(address, policy)
        if policy and self.holds_registry:
            raise HandshakeError(eviction_problem(address, policy, holds_registry=True))

    def cancel_other_attempts(self, primary: Address) -> None:
        """Cancel attempts to connect to servers other than *primary*: their callers get LinkLostError."""
        for opening, address in self._openings.items():
            if address != primary:
                opening.cancel()

    async def open_sentinel(self, sentinel: Address) -> Link:
        """
        Open a link to a Sentinel, without scripts.

        Raises:
            As `open` does.
        """

        async def keep(link: Link) -> Link:
            return link

        limit_s = self.limits.discovery_timeout_s
        return await self._reach(sentinel, self.url.sentinel_login, limit_s, keep)

    async def ask(self, address: Address, *commands: tuple[str, ...]) -> list[Any]:
        """
        Connect, send *commands* and return their replies; only the first must not be an error.

        Raises:
            As `open` does.
        """
        return await self._ask(address, self.url.login, *commands)

    async def _ask(self, address: Address, login: Login, *commands: tuple[str, ...]) -> list[Any]:
        async def request(link: Link) -> list[Any]:
            try:
                asking = [link.request(*words) for words in commands]
                first, *others = await asyncio.gather(*asking, return_exceptions=True)
                if isinstance(first, ErrorReply):
                    info = await self._info(link)
                    if info is not None and (trouble := topology_mismatch(self.url, address, info)):
                        raise HandshakeError(trouble)
                if isinstance(first, BaseException):
                    raise first
                return [first, *others]
            finally:
                link.abort()

        return await self._reach(address, login, self.limits.discovery_timeout_s, request)

    async def agree_on_layout(self, link: Link, *, is_asking: bool = False) -> None:
        """
        Make sure that all sidecars of the fleet use the same number of partitions.

        A new store gets the number of the URL, by default 1, or 16 in a Cluster. An existing store keeps its
        number, which is used unless the URL states one.

        *is_asking*: the server is importing the slot of the keys, so send ASKING first.

        Raises:
            HandshakeError: the store has another layout, or has keys but no layout.
            ErrorReply: the server refused a command.
        """

        async def ask(*words: str) -> Any:
            if is_asking:
                await link.request("ASKING")
            try:
                return await link.request(*words)
            except ErrorReply as error:
                if error.code == "MOVED" and self.url.kind is not StoreTopology.CLUSTER:
                    raise HandshakeError(f"{link.address}: {advice_of(error)}") from None
                raise

        keys = self.keys
        found = await ask("GET", keys.layout_key)
        if found is None:
            if not keys.is_settled:
                await self._require_new(ask)
            in_cluster = self.url.kind is StoreTopology.CLUSTER
            layout = keys.layout if keys.is_settled else layout_of(CLUSTER_PARTITIONS if in_cluster else 1)
            await ask("SET", keys.layout_key, layout, "NX")
            found = await ask("GET", keys.layout_key)
        text = (found or b"").decode(errors="replace")
        partitions = read_layout(text)
        if partitions is not None and not keys.is_settled:
            keys.settle(partitions)
        if text != keys.layout or partitions is None:
            raise HandshakeError(other_layout(keys, text))

    async def _require_new(self, ask: Callable[..., Awaitable[Any]]) -> None:
        """
        Make sure that a store without a layout has no other keys of a fleet, whose number would be a guess.

        Raises:
            HandshakeError: there are keys.
        """
        for name in ("registry-id", "epoch", "live"):
            try:
                exists = await ask("GET", self.keys.named(0, name)) is not None
            except ErrorReply as error:
                if error.code != "WRONGTYPE":
                    raise
                exists = True  # "live" is a sorted set
            if exists:
                raise HandshakeError(
                    f"the store at {self.url} holds keys under prefix {self.keys.prefix!r} but not their"
                    f" layout ({self.keys.layout_key}), so the number of partitions is unknown: add it to"
                    f" the URL; partitions={CLUSTER_PARTITIONS} was the default of earlier versions"
                )

    async def explain_sentinel(self, sentinel: Address) -> str:
        """Why a Sentinel does not know the service of the URL."""
        try:
            [reply] = await self._ask(sentinel, self.url.sentinel_login, ("INFO",))
            info = ServerInfo.parse(reply)
        except HandshakeError:
            info = ServerInfo({"redis_mode": "sentinel"})
        return sentinel_problem(self.url, sentinel, info)

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


def other_layout(keys: KeySpace, found: str) -> str:
    """The error text for a store whose layout *found* differs from that of *keys*."""
    if (partitions := read_layout(found)) is None:
        return (
            f"the keys under prefix {keys.prefix!r} have the layout {found!r}, which this version does not"
            " support: use the version that wrote it, or another prefix"
        )
    return (
        f"the keys under prefix {keys.prefix!r} have partitions={partitions}, and this sidecar has"
        f" partitions={keys.partitions}: remove 'partitions' from the URL and restart, or set the same"
        " 'partitions' for every sidecar, or use another prefix"
    )


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
        # The name only helps readers of CLIENT LIST; the ACL may forbid it.


async def _require_primary(link: Link) -> None:
    """Check with ROLE that the server is a primary."""
    role = await link.request("ROLE")
    if not role or role[0] != b"master":
        raise HandshakeError(f"the Sentinels name {link.address} as the primary, but it is still a replica")


async def _load_scripts(link: Link, scripts: Sequence[Script]) -> None:
    replies = await asyncio.gather(*(link.request("SCRIPT", "LOAD", script.source) for script in scripts))
    for script, sha in zip(scripts, replies, strict=True):
        if sha != script.sha:
            raise HandshakeError(f"the server loaded {script.name} with SHA-1 {sha!r}, not {script.sha!r}")

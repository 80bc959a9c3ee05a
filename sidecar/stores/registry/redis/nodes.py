"""
The way to the registry's partitions: links of its own, so that large answers never hold up decisions.

A call finds the node that serves its partition, connects where need be, and looks again when the node has
changed. What was certainly not carried out is repeated until the caller's time is over; a write whose reply
was lost is not: whether it happened, only a look can tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, TypeAlias

from sidecar.stores.redis.cluster import read_slots
from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, HandshakeError
from sidecar.stores.redis.keeper import Backoff
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import IGNORED, Link, LinkLostError
from sidecar.stores.redis.replies import ErrorReply, Remedy, advice_of, remedy_of
from sidecar.stores.redis.resp import pack_all
from sidecar.stores.redis.scripts import Script
from sidecar.stores.redis.urls import Address, Kind, StoreUrl
from sidecar.stores.registry.protocol import RegistryUnavailableError
from sidecar.stores.registry.redis.scripts import SCRIPTS

Word: TypeAlias = str | bytes | int
Command: TypeAlias = tuple[Word, ...]

PATIENCE_S = 1.2
"""How long a call tries to reach a node that is not there, before its caller is told: within two seconds."""
REPLY_TIMEOUT_S = 1.2
"""A node that has not replied for so long is given up, and its connection with it."""
REPLY_BYTES_MAX = 64 << 20
COMMANDS_MAX = 512
"""Commands that leave together: bounds how long others of this link wait."""

LIMITS = replace(
    StoreLimits(), reply_bytes_max=REPLY_BYTES_MAX, connect_timeout_s=0.9, discovery_timeout_s=0.5
)

_REPEATED = (Remedy.FIND_NODES, Remedy.FIND_PRIMARY, Remedy.WAIT)


class ReplyLostError(Exception):
    """A write left and its reply did not come: it may have been carried out."""


class Nodes:
    """Links to the nodes of one store, by partition; made when they are first needed."""

    def __init__(self, url: StoreUrl, space: KeySpace, limits: StoreLimits = LIMITS) -> None:
        """Nothing is opened yet."""
        self.url = url
        self.connector = Connector(url, space, limits, SCRIPTS, holds_registry=True)
        self._space = space
        self._limits = limits
        self._links: dict[Address, Link] = {}
        self._slots: dict[int, Address] = {}
        self._connecting = asyncio.Lock()
        self._is_agreed = False
        self._is_closed = False
        self._trouble = ""

    async def run(self, partition: int, commands: Sequence[Command], deadline_s: float) -> list[Any]:
        """
        The replies to *commands*, which only read or may be repeated, by the node of *partition*.

        Raises:
            RegistryUnavailableError, RegistryTimeoutError: *deadline_s* (monotonic) came first.
        """
        replies: list[Any] = []
        for first in range(0, len(commands), COMMANDS_MAX):
            some = commands[first : first + COMMANDS_MAX]
            replies += await self._repeat(partition, deadline_s, lambda some=some: some, is_write=False)  # type: ignore[misc]
        return replies

    async def write(
        self,
        partition: int,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Word],
        deadline_s: float,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Any:
        """
        The reply of *script*; *on_sent* is called whenever it leaves.

        Raises:
            ReplyLostError: it may have been carried out.
            RegistryUnavailableError, RegistryTimeoutError: as `run`; it was not carried out.
        """

        def commands() -> Sequence[Command]:
            on_sent()
            return [call_of(script, keys, arguments)]

        [reply] = await self._repeat(partition, deadline_s, commands, is_write=True)
        return reply

    async def close(self) -> None:
        """End all links."""
        self._is_closed = True
        links, self._links = self._links, {}
        for link in links.values():
            link.abort()
        await asyncio.gather(*(asyncio.shield(link.lost) for link in links.values()))

    async def address_of(self, partition: int) -> Address | None:
        """The node of *partition* in a Cluster; None = there is one primary, found when connecting."""
        if self.url.kind is not Kind.CLUSTER:
            return None
        if partition not in self._slots:
            await self._find_nodes()
        return self._slots[partition]

    def search(self) -> None:
        """Ask for the nodes of the Cluster again when the next call needs one."""
        self._slots.clear()

    # Repeating.

    async def _repeat(
        self, partition: int, deadline_s: float, commands: Callable[[], Sequence[Command]], is_write: bool
    ) -> list[Any]:
        backoff = Backoff(self._limits)
        has_failed = False
        deadline_s = min(deadline_s, monotonic() + PATIENCE_S)
        while True:
            try:
                return await self._attempt(partition, deadline_s, commands, is_write)
            except _RepeatError as error:
                # A connection that was lost is reopened at once; the wait is for what fails again.
                wait_s = 0.0 if error.is_link_lost and not has_failed else backoff.next_s()
                has_failed = True
                if monotonic() + wait_s >= deadline_s:
                    raise RegistryUnavailableError(
                        f"the store {self.url}, which holds the registry, cannot be used: {error}. Nothing"
                        " was changed; retry when that is corrected"
                    ) from error
            await asyncio.sleep(wait_s)

    async def _attempt(
        self, partition: int, deadline_s: float, commands: Callable[[], Sequence[Command]], is_write: bool
    ) -> list[Any]:
        link = await self._link(partition, deadline_s)
        sent = commands()
        try:
            replies = await self._ask(link, sent, deadline_s)
        except (LinkLostError, TimeoutError) as error:
            link.abort()
            self.search()
            if is_write:
                raise ReplyLostError(str(error)) from error
            is_link_lost = isinstance(error, LinkLostError)
            raise _RepeatError(f"no reply: {error or 'too late'}", is_link_lost=is_link_lost) from error
        errors = [reply for reply in replies if isinstance(reply, ErrorReply)]
        if errors:
            await self._mend(link, errors[0], is_write)
        return replies

    async def _mend(self, link: Link, error: ErrorReply, is_write: bool) -> None:
        """An error reply means that the command was not carried out; always raises."""
        remedy = remedy_of(error)
        if remedy is Remedy.LOAD_SCRIPT:
            link.send(pack_all([("SCRIPT", "LOAD", one.source) for one in SCRIPTS]), [IGNORED] * len(SCRIPTS))
        elif remedy in _REPEATED:
            self.search()
            if remedy is Remedy.FIND_PRIMARY:
                link.abort()
        else:
            raise RegistryUnavailableError(
                f"the store {self.url}, which holds the registry, refuses: {advice_of(error)}"
            )
        raise _RepeatError(advice_of(error)) from error

    async def _ask(self, link: Link, commands: Sequence[Command], deadline_s: float) -> list[Any]:
        """Send *commands* together; the replies, errors among them."""
        receiver = _Replies(asyncio.get_running_loop().create_future(), len(commands))
        link.send(pack_all(commands), [receiver] * len(commands))
        async with asyncio.timeout(max(0.0, min(REPLY_TIMEOUT_S, deadline_s - monotonic()))):
            return await receiver.future

    # Connecting.

    async def _link(self, partition: int, deadline_s: float) -> Link:
        """An open link to the node of *partition*."""
        try:
            async with asyncio.timeout(max(0.0, deadline_s - monotonic())):
                address = await self.address_of(partition) or self.url.addresses[0]
                link = self._links.get(address)
                if link is not None and link.is_open:
                    return link
                async with self._connecting:
                    return await self._connect(address)
        except CONNECT_ERRORS as error:
            self.search()
            self._trouble = str(error) or self._trouble
            raise _RepeatError(self._trouble or f"no connection within {PATIENCE_S:g} s") from error

    async def _connect(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is not None and link.is_open:
            return link  # somebody else was quicker
        if self._is_closed:
            raise LinkLostError("the registry was closed")
        is_sentinel = self.url.kind is Kind.SENTINEL
        link = await (self.connector.open_primary() if is_sentinel else self.connector.open(address))
        if not self._is_agreed and (
            self.url.kind is not Kind.CLUSTER or self._slots.get(0, address) == address
        ):
            try:
                async with asyncio.timeout(self._limits.discovery_timeout_s):
                    await self.connector.agree_on_layout(link)
            except BaseException:
                link.abort()
                raise
            self._is_agreed = True
        self._links[address] = link
        return link

    async def _find_nodes(self) -> None:
        """Ask for the slot map of the Cluster; nodes that we know come first."""
        troubles = []
        for address in dict.fromkeys((*self._links, *self.url.addresses)):
            try:
                slot_map = read_slots(
                    await self.connector.ask(address, self.url.login, "CLUSTER", "SLOTS"), address.host
                )
            except CONNECT_ERRORS as error:
                troubles.append(str(error))
                continue
            owners = {
                partition: owner
                for partition in range(self._space.partitions)
                for first, last, owner in slot_map
                if first <= self._space.slot_of(partition) <= last
            }
            if len(owners) == self._space.partitions:
                self._slots = owners
                return
            troubles.append(f"{address}: not every slot is served")
        raise HandshakeError("; ".join(troubles))


def call_of(script: Script, keys: Sequence[str], arguments: Sequence[Word]) -> Command:
    """The command that runs *script*."""
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


class _RepeatError(Exception):
    """It was not carried out, and may be after a moment; `is_link_lost` = at once, by another connection."""

    def __init__(self, text: str, *, is_link_lost: bool = False) -> None:
        super().__init__(text)
        self.is_link_lost = is_link_lost


class _Replies:
    """Gathers the replies of commands that were sent together."""

    __slots__ = ("_count", "_replies", "future")

    def __init__(self, future: asyncio.Future[list[Any]], count: int) -> None:
        self.future = future
        self._count = count
        self._replies: list[Any] = []

    def replied(self, reply: Any) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._count and not self.future.done():
            self.future.set_result(self._replies)

    def lost(self) -> None:
        if not self.future.done():
            self.future.set_exception(LinkLostError("the connection ended before the reply"))

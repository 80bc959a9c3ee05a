"""
The way to the registry's partitions: links of its own, so that large answers never hold up decisions.

A call finds the node that serves its partition, connects where need be, and looks again when the node has
changed. What was certainly not carried out is repeated until the caller's time is over; a write whose reply
was lost is not: whether it happened, only a look can tell.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeAlias, TypeVar

from sidecar.stores.clocks import StoreClock
from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, HandshakeError
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link, LinkLostError, load_again
from sidecar.stores.redis.replies import ErrorReply, Remedy, advice_of, remedy_of
from sidecar.stores.redis.resp import pack_all
from sidecar.stores.redis.scripts import Script
from sidecar.stores.redis.sentinels import SentinelWatch
from sidecar.stores.redis.slots import find_slots, read_redirect
from sidecar.stores.redis.urls import Address, StoreTopology, StoreUrl
from sidecar.stores.registry.protocol import RegistryUnavailableError
from sidecar.stores.registry.redis.scripts import SCRIPTS

log = logging.getLogger(__name__)

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

Result = TypeVar("Result")

_REPEATED = (Remedy.FIND_NODES, Remedy.FIND_PRIMARY, Remedy.WAIT)


@dataclass(frozen=True, slots=True)
class Replication:
    """
    What makes a write durable: it is on *replicas_min* replicas, and on all that are connected.

    `replicas_min` 0 = nothing is waited for; `timeout_s` is how long replicas have.
    """

    replicas_min: int = 1
    timeout_s: float = 1.0


REPLICATION = Replication()
WRITERS_MAX = 32
"""Idle connections for writes that are kept to a node: while one waits for its replicas, others go on."""


class ReplyLostError(Exception):
    """A write left, and whether it is in the history that counts is not known: look for it."""


class Written(NamedTuple):
    """Replies to a write's commands, and whether it is on replicas, so that a failover cannot lose it."""

    replies: list[Any]
    is_durable: bool


class Nodes:
    """
    Links to the nodes of one store, by partition; made when they are first needed.

    `clock` tells the time of the home partition's node, as it was last told.
    """

    def __init__(
        self,
        url: StoreUrl,
        space: KeySpace,
        limits: StoreLimits = LIMITS,
        replication: Replication = REPLICATION,
    ) -> None:
        """Nothing is opened yet; *replication* is what makes a write durable."""
        self.url = url
        self.connector = Connector(url, space, limits, SCRIPTS, holds_registry=True)
        self.on_move: Callable[[Address], None] = lambda primary: None
        """Called when the Sentinels name another primary: links to others are of no use."""
        self.clock = StoreClock()
        self._space = space
        self._limits = limits
        self._replication = replication
        self._links: dict[Address, Link] = {}
        self._writers: dict[Address, list[Link]] = {}
        self._slots: dict[int, Address] = {}
        self._connecting = asyncio.Lock()
        self._is_agreed = False
        self._is_closed = False
        self._trouble = ""
        self.has_replicas = replication.replicas_min > 1 or (
            url.kind is StoreTopology.SENTINEL and replication.replicas_min > 0
        )
        """Whether replicas were seen, or should be there; never while none is to be waited for."""
        self._watch: SentinelWatch | None = None
        if url.kind is StoreTopology.SENTINEL:
            self._watch = SentinelWatch(self.connector, self._moved)

    async def run(self, partition: int, commands: Sequence[Command], deadline_s: float) -> list[Any]:
        """
        The replies to *commands*, which only read or may be repeated, by the node of *partition*.

        Raises:
            RegistryUnavailableError, RegistryTimeoutError: *deadline_s* (monotonic) came first.
        """
        replies: list[Any] = []
        for first in range(0, len(commands), COMMANDS_MAX):
            some = commands[first : first + COMMANDS_MAX]
            replies += await self._repeat(deadline_s, partial(self._attempt, partition, deadline_s, some))
        return replies

    async def write(
        self,
        partition: int,
        commands: Sequence[Command],
        deadline_s: float,
        on_sent: Callable[[], None] = lambda: None,
    ) -> Written:
        """
        The replies to *commands*, and whether what they wrote is durable; *on_sent* is called as they leave.

        After an error reply all of them are repeated: several must be such as may be.

        Raises:
            ReplyLostError: they may have been carried out, or on a server that is no longer the primary.
            RegistryUnavailableError, RegistryTimeoutError: as `run`; they were not carried out.
        """

        def leaving() -> Sequence[Command]:
            on_sent()
            return commands

        return await self._repeat(deadline_s, lambda: self._attempt_write(partition, deadline_s, leaving))

    async def learn_layout(self, deadline_s: float) -> None:
        """
        Have the store tell its number of partitions, unless that is known.

        Raises:
            RegistryUnavailableError, RegistryTimeoutError: as `run`.
        """
        if not self._space.is_settled:
            await self.run(0, [("TIME",)], deadline_s)  # connecting learns it

    async def close(self) -> None:
        """End all links."""
        self._is_closed = True
        if self._watch is not None:
            await self._watch.close()
        links = [*self._links.values(), *(link for idle in self._writers.values() for link in idle)]
        self._links, self._writers = {}, {}
        for link in links:
            link.abort()
        await asyncio.gather(*(asyncio.shield(link.lost) for link in links))

    async def address_of(self, partition: int) -> Address:
        """The node of *partition*."""
        if self._watch is not None:
            if self._watch.primary is None:
                await self._watch.ask()
            self._watch.start()
            assert self._watch.primary is not None
            return self._watch.primary
        if self.url.kind is not StoreTopology.CLUSTER:
            return self.url.addresses[0]
        if partition not in self._slots:
            await self._find_nodes()
        if partition not in self._slots:
            raise HandshakeError(f"no node of the Cluster serves partition {partition}")
        return self._slots[partition]

    def search(self) -> None:
        """Look for the nodes again: of a Cluster when the next call needs one, behind Sentinels now."""
        self._slots.clear()
        if self._watch is not None:
            self._watch.query_soon()

    def _moved(self, primary: Address) -> None:
        """The Sentinels name another primary: leave the former one, whatever it still answers."""
        self.connector.cancel_other_attempts(primary)
        for address in [address for address in self._links if address != primary]:
            self._links.pop(address).abort()
        for address in [address for address in self._writers if address != primary]:
            for link in self._writers.pop(address):
                link.abort()
        self.on_move(primary)

    # Repeating.

    async def _repeat(self, deadline_s: float, attempt: Callable[[], Awaitable[Result]]) -> Result:
        backoff = self._limits.backoff()
        has_failed = False
        deadline_s = min(deadline_s, monotonic() + PATIENCE_S)
        while True:
            try:
                return await attempt()
            except _RepeatError as error:
                # A connection that was lost is reopened at once; the wait is for what fails again.
                wait_s = 0.0 if error.is_link_lost and not has_failed else backoff.next_s()
                has_failed = True
                if monotonic() + wait_s >= deadline_s:
                    raise RegistryUnavailableError(
                        f"the store {self.url}, which holds the registry, cannot be used: {error}"
                    ) from error
            await asyncio.sleep(wait_s)

    async def _attempt(self, partition: int, deadline_s: float, commands: Sequence[Command]) -> list[Any]:
        link = await self._link(partition, deadline_s)
        try:
            replies = await self._ask(link, commands, deadline_s)
        except (LinkLostError, TimeoutError) as error:
            link.abort()
            self.search()
            is_link_lost = isinstance(error, LinkLostError)
            raise _RepeatError(f"no reply: {error or 'too late'}", is_link_lost=is_link_lost) from error
        targets: dict[Address, list[int]] = {}
        for index, reply in enumerate(replies):
            if isinstance(reply, ErrorReply) and reply.code == "ASK":
                targets.setdefault(read_redirect(reply, link.address), []).append(index)
        for target, indexes in targets.items():  # those alone: what the first node has, the other one lacks
            there = await self._link_to(target, deadline_s)
            found = await self._ask_there(there, [commands[index] for index in indexes], deadline_s)
            for index, reply in zip(indexes, found, strict=True):
                replies[index] = reply
        await self._mend_any(partition, link, replies)
        return replies

    async def _ask_there(self, link: Link, commands: Sequence[Command], deadline_s: float) -> list[Any]:
        """The replies of a node that a slot is being moved to."""
        asking = [word for command in commands for word in (("ASKING",), command)]
        try:
            return (await self._ask(link, asking, deadline_s))[1::2]
        except (LinkLostError, TimeoutError) as error:
            link.abort()
            raise _RepeatError(f"no reply: {error or 'too late'}") from error

    async def _attempt_write(
        self, partition: int, deadline_s: float, commands: Callable[[], Sequence[Command]]
    ) -> Written:
        link = await self._link(partition, deadline_s, is_writer=True)
        try:
            sent = commands()
            replies = await self._ask(link, sent, deadline_s)
            first = replies[0]
            if isinstance(first, ErrorReply) and first.code == "ASK":
                self._put_back(link)
                link = await self._writer(read_redirect(first, link.address))
                asking = [word for command in sent for word in (("ASKING",), command)]
                replies = (await self._ask(link, asking, deadline_s))[1::2]
            await self._mend_any(partition, link, replies)
            is_durable = await self._settle(partition, link, deadline_s)
        except (LinkLostError, TimeoutError) as error:
            link.abort()
            self.search()
            raise ReplyLostError(str(error)) from error
        except ReplyLostError:
            self.search()
            raise
        finally:
            self._put_back(link)
        return Written(replies, is_durable)

    def _put_back(self, link: Link) -> None:
        """Keep *link* for the next write, if it is well and there is room."""
        idle = self._writers.setdefault(link.address, [])
        if link.is_open and not link.waiting and len(idle) < WRITERS_MAX and not self._is_closed:
            idle.append(link)
        else:
            link.abort()

    async def _settle(self, partition: int, link: Link, deadline_s: float) -> bool:
        """
        Whether what was just written over *link* is on every replica that may take the primary's place.

        Raises:
            ReplyLostError: another server is the primary, or is about to be: its history counts.
            LinkLostError, TimeoutError: the same, as far as is known.
        """
        watch, replication = self._watch, self._replication
        # After the write: it lists the replicas that have not turned away by then.
        [role] = await self._ask(link, [("ROLE",)], deadline_s)
        listed = len(role[2]) if isinstance(role, list) and role[0] == b"master" else 0
        known = max(listed, watch.replicas if watch is not None else 0)
        wanted = max(known, replication.replicas_min) if known and replication.replicas_min else 0
        acknowledged = 0
        self.has_replicas = self.has_replicas or wanted > 0
        if wanted:
            wait_s = max(0.001, min(replication.timeout_s, deadline_s - monotonic()))
            [acknowledged] = await self._ask(
                link, [("WAIT", wanted, round(wait_s * 1_000))], deadline_s, wait_s + REPLY_TIMEOUT_S
            )
            if isinstance(acknowledged, ErrorReply):
                log.warning("whether replicas have a change is not known: %s", advice_of(acknowledged))
                acknowledged = 0
        is_durable = 0 < wanted <= acknowledged
        if watch is None:
            if wanted and not is_durable and self.url.kind is StoreTopology.CLUSTER:
                await self._require_owner(partition, link)
            return is_durable
        try:
            word = await watch.ask(every=True)
        except HandshakeError:
            return False
        if word.primary != link.address:
            raise ReplyLostError(f"{word.primary} is the primary now")
        if word.is_failing_over:
            raise ReplyLostError("a failover is under way")
        is_durable = is_durable and acknowledged >= word.replicas
        await watch.wait_for_handover()
        if watch.primary != link.address:
            raise ReplyLostError(f"{watch.primary} is the primary now")
        return is_durable and word.is_majority

    async def _require_owner(self, partition: int, link: Link) -> None:
        """Make sure that the Cluster has no other primary for *partition*."""
        try:
            await self._find_nodes()
        except CONNECT_ERRORS as error:
            raise ReplyLostError(str(error)) from error
        owner = self._slots.get(partition)
        if owner != link.address:
            raise ReplyLostError(f"{owner or 'nobody'} serves partition {partition} now")

    async def _mend_any(self, partition: int, link: Link, replies: Sequence[Any]) -> None:
        error = next((reply for reply in replies if isinstance(reply, ErrorReply)), None)
        if error is not None:
            await self._mend(partition, link, error)

    async def _mend(self, partition: int, link: Link, error: ErrorReply) -> None:
        """An error reply means that the command was not carried out; always raises."""
        remedy = remedy_of(error)
        if remedy is Remedy.LOAD_SCRIPT:
            load_again(link, SCRIPTS)
        elif remedy in _REPEATED:
            self.search()
            if remedy is Remedy.FIND_PRIMARY:
                link.abort()
            if error.code == "MOVED" and self.url.kind is StoreTopology.CLUSTER:
                self._slots[partition] = read_redirect(error, link.address)
                raise _RepeatError(str(error), is_link_lost=True) from error
        else:
            raise RegistryUnavailableError(
                f"the store {self.url}, which holds the registry, refuses: {advice_of(error)}"
            )
        raise _RepeatError(advice_of(error)) from error

    async def _ask(
        self,
        link: Link,
        commands: Sequence[Command],
        deadline_s: float,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> list[Any]:
        """Send *commands* together; the replies, errors among them."""
        receiver = _Replies(asyncio.get_running_loop().create_future(), len(commands))
        link.send(pack_all(commands), [receiver] * len(commands))
        async with asyncio.timeout(max(0.0, min(timeout_s, deadline_s - monotonic()))):
            return await receiver.future

    # Connecting.

    async def _link(self, partition: int, deadline_s: float, *, is_writer: bool = False) -> Link:
        """An open link to the node of *partition*; a writer has it for itself until it puts it back."""
        try:
            async with asyncio.timeout(max(0.0, deadline_s - monotonic())):
                address = await self.address_of(partition)
                if is_writer:
                    return await self._writer(address)
                return await self._reader(address)
        except CONNECT_ERRORS as error:
            self.search()
            self._trouble = str(error) or self._trouble
            raise _RepeatError(self._trouble or f"no connection within {PATIENCE_S:g} s") from error

    async def _link_to(self, address: Address, deadline_s: float) -> Link:
        """An open link to the node at *address*, to which another one redirects."""
        try:
            async with asyncio.timeout(max(0.0, deadline_s - monotonic())):
                return await self._reader(address)
        except CONNECT_ERRORS as error:
            raise _RepeatError(str(error) or f"{address} cannot be reached in time") from error

    async def _reader(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is not None and link.is_open:
            return link
        async with self._connecting:
            link = self._links.get(address)
            if link is None or not link.is_open:  # else somebody was quicker
                link = self._links[address] = await self._connect(address)
            return link

    async def _writer(self, address: Address) -> Link:
        idle = self._writers.get(address, [])
        while idle:
            link = idle.pop()
            if link.is_open:
                return link
        return await self._connect(address)

    async def _connect(self, address: Address) -> Link:
        if self._is_closed:
            raise LinkLostError("the registry was closed")
        link = await self.connector.open(address)
        if self._watch is not None and self._watch.primary != address:
            link.abort()
            raise LinkLostError(f"{address} is no longer the primary")
        if not self._is_agreed and (
            self.url.kind is not StoreTopology.CLUSTER or self._slots.get(0, address) == address
        ):
            try:
                async with asyncio.timeout(self._limits.discovery_timeout_s):
                    await self.connector.agree_on_layout(link)
                self._slots.clear()  # of the partitions as they were known before
            except BaseException:
                link.abort()
                raise
            self._is_agreed = True
        return link

    async def _find_nodes(self) -> None:
        """Ask for the slot map of the Cluster; nodes that we know come first."""
        slot_map = await find_slots(self.connector, (*self._links, *self.url.addresses))
        self._slots = slot_map.owners(self._space)


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

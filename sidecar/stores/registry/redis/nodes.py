"""
Access to the nodes of the registry's partitions, over separate links, so that large replies do not delay
decisions.

A call finds the node that serves its partition, connects if necessary, and finds the node again if it has
changed. Commands that were certainly not executed are repeated until the deadline. A write whose reply was
lost is not repeated: the caller must read whether it was executed.
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
"""How long a call tries to reach a node, so that its caller gets an error within two seconds."""
REPLY_TIMEOUT_S = 1.2
"""How long to wait for a reply before the connection is aborted."""
REPLY_BYTES_MAX = 64 << 20
COMMANDS_MAX = 512
"""Maximum number of commands sent together: bounds how long other calls on the link wait."""

LIMITS = replace(
    StoreLimits(), reply_bytes_max=REPLY_BYTES_MAX, connect_timeout_s=0.9, discovery_timeout_s=0.5
)

Result = TypeVar("Result")

_REPEATED = (Remedy.FIND_NODES, Remedy.FIND_PRIMARY, Remedy.WAIT)


@dataclass(frozen=True, slots=True)
class Replication:
    """
    When a write is durable: it is on *replicas_min* replicas, and on all that are connected.

    `replicas_min` 0 = do not wait; `timeout_s` is how long to wait for replicas.
    """

    replicas_min: int = 1
    timeout_s: float = 1.0


REPLICATION = Replication()
WRITERS_MAX = 32
"""Maximum number of idle connections for writes per node: a write occupies one until replicas confirm."""


class ReplyLostError(Exception):
    """A write was sent and may have been executed: read whether it is in the history."""


class Written(NamedTuple):
    """The replies to a write, and whether it is durable: a failover cannot lose it."""

    replies: list[Any]
    is_durable: bool


class Nodes:
    """
    Links to the nodes of one store, opened when they are first needed.

    `clock` is the clock of the node of partition 0.
    """

    def __init__(
        self,
        url: StoreUrl,
        space: KeySpace,
        limits: StoreLimits = LIMITS,
        replication: Replication = REPLICATION,
    ) -> None:
        """Connect at the first call; *replication* defines when a write is durable."""
        self.url = url
        self.connector = Connector(url, space, limits, SCRIPTS, holds_registry=True)
        self.on_primary_change: Callable[[Address], None] = lambda primary: None
        """Called when the Sentinels name another primary."""
        self.clock = StoreClock()
        self._space = space
        self._limits = limits
        self._replication = replication
        self._links: dict[Address, Link] = {}
        self._writers: dict[Address, list[Link]] = {}
        self._slots: dict[int, Address] = {}
        self._connecting = asyncio.Lock()
        self._is_layout_agreed = False
        self._is_closed = False
        self._trouble = ""
        self.has_replicas = replication.replicas_min > 1 or (
            url.kind is StoreTopology.SENTINEL and replication.replicas_min > 0
        )
        """Whether there are replicas to wait for, or should be."""
        self._watch: SentinelWatch | None = None
        if url.kind is StoreTopology.SENTINEL:
            self._watch = SentinelWatch(self.connector, self._moved)

    async def run(self, partition: int, commands: Sequence[Command], deadline_s: float) -> list[Any]:
        """
        Run *commands*, which only read or may be repeated, on the node of *partition*; return the replies.

        Raises:
            RegistryUnavailableError, RegistryTimeoutError: no success before *deadline_s* (monotonic).
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
        Run writing *commands* and wait for replicas; *on_sent* is called when the commands are sent.

        After an error reply all commands are repeated, so several commands must be repeatable.

        Raises:
            ReplyLostError: the commands may have been executed, or by a server that is no longer the primary.
            RegistryUnavailableError, RegistryTimeoutError: as `run`; the commands were not executed.
        """

        def send() -> Sequence[Command]:
            on_sent()
            return commands

        return await self._repeat(deadline_s, lambda: self._attempt_write(partition, deadline_s, send))

    async def learn_layout(self, deadline_s: float) -> None:
        """
        Read the store's number of partitions, unless it is known.

        Raises:
            RegistryUnavailableError, RegistryTimeoutError: as `run`.
        """
        if not self._space.is_settled:
            await self.run(0, [("TIME",)], deadline_s)  # connecting reads the layout

    async def close(self) -> None:
        """Close all links."""
        self._is_closed = True
        if self._watch is not None:
            await self._watch.close()
        links = [*self._links.values(), *(link for idle in self._writers.values() for link in idle)]
        self._links, self._writers = {}, {}
        for link in links:
            link.abort()
        await asyncio.gather(*(asyncio.shield(link.lost) for link in links))

    async def address_of(self, partition: int) -> Address:
        """The address of the node of *partition*."""
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
        """Find the nodes again: query Sentinels now, a Cluster at the next call."""
        self._slots.clear()
        if self._watch is not None:
            self._watch.query_soon()

    def _moved(self, primary: Address) -> None:
        """Close all links to other servers than *primary*, which the Sentinels name now."""
        self.connector.cancel_other_attempts(primary)
        for address in [address for address in self._links if address != primary]:
            self._links.pop(address).abort()
        for address in [address for address in self._writers if address != primary]:
            for link in self._writers.pop(address):
                link.abort()
        self.on_primary_change(primary)

    # Repeating.

    async def _repeat(self, deadline_s: float, attempt: Callable[[], Awaitable[Result]]) -> Result:
        backoff = self._limits.backoff()
        has_failed = False
        deadline_s = min(deadline_s, monotonic() + PATIENCE_S)
        while True:
            try:
                return await attempt()
            except _RepeatError as error:
                # A lost connection is reopened at once; repeated failures wait.
                wait_s = 0.0 if error.is_link_lost and not has_failed else backoff.next_s()
                has_failed = True
                if monotonic() + wait_s >= deadline_s:
                    raise RegistryUnavailableError(
                        f"the registry's store {self.url} cannot be used: {error}"
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
            raise _RepeatError(f"no reply: {str(error) or 'timeout'}", is_link_lost=is_link_lost) from error
        targets: dict[Address, list[int]] = {}
        for index, reply in enumerate(replies):
            if isinstance(reply, ErrorReply) and reply.code == "ASK":
                targets.setdefault(read_redirect(reply, link.address), []).append(index)
        for (
            target,
            indexes,
        ) in targets.items():  # only the redirected commands: the target has only their keys
            target_link = await self._link_to(target, deadline_s)
            found = await self._ask_target(target_link, [commands[index] for index in indexes], deadline_s)
            for index, reply in zip(indexes, found, strict=True):
                replies[index] = reply
        self._raise_any(partition, link, replies)
        return replies

    async def _ask_target(self, link: Link, commands: Sequence[Command], deadline_s: float) -> list[Any]:
        """The replies of a node that a slot is migrating to."""
        asking = [word for command in commands for word in (("ASKING",), command)]
        try:
            return (await self._ask(link, asking, deadline_s))[1::2]
        except (LinkLostError, TimeoutError) as error:
            link.abort()
            raise _RepeatError(f"no reply: {str(error) or 'timeout'}") from error

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
            self._raise_any(partition, link, replies)
            is_durable = await self._wait_for_replicas(partition, link, deadline_s)
        except (LinkLostError, TimeoutError) as error:
            link.abort()
            self.search()
            raise ReplyLostError(str(error) or "timeout") from error
        except ReplyLostError:
            self.search()
            raise
        finally:
            self._put_back(link)
        return Written(replies, is_durable)

    def _put_back(self, link: Link) -> None:
        """Keep *link* for the next write if it is usable and there is room; else close it."""
        idle = self._writers.setdefault(link.address, [])
        if link.is_open and not link.waiting and len(idle) < WRITERS_MAX and not self._is_closed:
            idle.append(link)
        else:
            link.abort()

    async def _wait_for_replicas(self, partition: int, link: Link, deadline_s: float) -> bool:
        """
        Wait for replicas; return whether the last write over *link* is on every replica that may be promoted.

        Raises:
            ReplyLostError: another server is or is becoming the primary, and may lack the write.
            LinkLostError, TimeoutError: the primary does not answer, so this may be the case.
        """
        watch, replication = self._watch, self._replication
        # Read after the write, so that it lists the replicas that are still connected.
        [role] = await self._ask(link, [("ROLE",)], deadline_s)
        listed = len(role[2]) if isinstance(role, list) and role[0] == b"master" else 0
        known = max(listed, watch.replicas if watch is not None else 0)
        wanted = max(known, replication.replicas_min) if known and replication.replicas_min else 0
        acknowledged = 0
        self.has_replicas = self.has_replicas or wanted > 0
        if wanted:
            wait_s = max(0.001, min(replication.timeout_s, deadline_s - monotonic()))
            [acknowledged] = await self._ask(
                link, [("WAIT", wanted, round(wait_s * 1_000))], deadline_s, wait_s
            )
            if isinstance(acknowledged, ErrorReply):
                log.warning("cannot check that replicas have a change: %s", advice_of(acknowledged))
                acknowledged = 0
        is_durable = 0 < wanted <= acknowledged
        if watch is None:
            if wanted and not is_durable and self.url.kind is StoreTopology.CLUSTER:
                await self._require_owner(partition, link)
            return is_durable
        try:
            report = await watch.ask(every=True)
        except HandshakeError:
            return False
        if report.primary != link.address:
            raise ReplyLostError(f"{report.primary} is the primary now")
        if report.is_failing_over:
            raise ReplyLostError("a failover is in progress")
        is_durable = is_durable and acknowledged >= report.replicas
        await watch.wait_for_handover()
        if watch.primary != link.address:
            raise ReplyLostError(f"{watch.primary} is the primary now")
        return is_durable and report.is_majority

    async def _require_owner(self, partition: int, link: Link) -> None:
        """Check that the Cluster has no other primary for *partition*."""
        try:
            await self._find_nodes()
        except CONNECT_ERRORS as error:
            raise ReplyLostError(str(error) or "timeout") from error
        owner = self._slots.get(partition)
        if owner != link.address:
            raise ReplyLostError(f"{owner or 'no node'} serves partition {partition} now")

    def _raise_any(self, partition: int, link: Link, replies: Sequence[Any]) -> None:
        """Raise for the first error reply, if any, and prepare its remedy; the command was not executed."""
        error = next((reply for reply in replies if isinstance(reply, ErrorReply)), None)
        if error is None:
            return
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
                f"the registry's store {self.url} refuses commands: {advice_of(error)}"
            )
        raise _RepeatError(advice_of(error)) from error

    async def _ask(
        self, link: Link, commands: Sequence[Command], deadline_s: float, blocked_s: float = 0.0
    ) -> list[Any]:
        """
        Send *commands* together; return the replies, which may be error replies.

        The server holds its reply back for up to *blocked_s*.
        """
        timeout_s = blocked_s + REPLY_TIMEOUT_S
        receiver = _Replies(asyncio.get_running_loop().create_future(), len(commands))
        link.send(pack_all(commands), [receiver] * len(commands))
        async with asyncio.timeout(max(0.0, min(timeout_s, deadline_s - monotonic()))):
            return await receiver.future

    # Connecting.

    async def _link(self, partition: int, deadline_s: float, *, is_writer: bool = False) -> Link:
        """An open link to the node of *partition*; for a writer an exclusive one, until it is put back."""
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
        """An open link to the node at *address*, the target of a redirect."""
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
            if link is None or not link.is_open:  # else another call has connected
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
        if not self._is_layout_agreed and (
            self.url.kind is not StoreTopology.CLUSTER or self._slots.get(0, address) == address
        ):
            try:
                async with asyncio.timeout(self._limits.discovery_timeout_s):
                    await self.connector.agree_on_layout(link)
                self._slots.clear()  # computed with the former number of partitions
            except BaseException:
                link.abort()
                raise
            self._is_layout_agreed = True
        return link

    async def _find_nodes(self) -> None:
        """Read the slot map of the Cluster, from known nodes first."""
        slot_map = await find_slots(self.connector, (*self._links, *self.url.addresses))
        self._slots = slot_map.owners(self._space)


def call_of(script: Script, keys: Sequence[str], arguments: Sequence[Word]) -> Command:
    """The command that runs *script*."""
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


class _RepeatError(Exception):
    """The command was not executed and may be repeated; `is_link_lost` = at once, over a new connection."""

    def __init__(self, text: str, *, is_link_lost: bool = False) -> None:
        super().__init__(text)
        self.is_link_lost = is_link_lost


class _Replies:
    """Collects the replies to commands that were sent together."""

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

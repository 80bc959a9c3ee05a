"""
Redirects of a Cluster: takes whose slot has moved or is migrating are sent to another node.

A node replies MOVED, ASK and TRYAGAIN before it runs a script, so the takes may be sent again; a call whose
reply was lost may not. While a slot is migrating its keys are on two nodes, and neither runs a script for
keys of which it lacks some: then the generation is read from its node, and after that the take is sent to
the node of the bucket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from sidecar.stores.protocols import StoreFault, TakeDone
from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, HandshakeError
from sidecar.stores.redis.counts import StoreCounts
from sidecar.stores.redis.link import IGNORED, Link, LinkLostError
from sidecar.stores.redis.node_pipeline import LinkCheck, NodePipeline
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.resp import pack
from sidecar.stores.redis.slots import read_redirect
from sidecar.stores.redis.take_call import NEVER_S, AnyGroup
from sidecar.stores.redis.urls import Address

CALLS_MAX = 256
"""Maximum number of redirected script calls at a time; the takes of more fail."""
HOPS_MAX = 5
LINKS_MAX = 16
"""Maximum number of connections to nodes that have no reconnector."""
PAUSE_S = 0.005
"""The wait before a call whose keys are migrating is repeated."""
ASKING = pack("ASKING")
FOLLOWED = ("MOVED", "ASK", "TRYAGAIN")


class _AllExpiredError(Exception):
    """Every take has expired."""


class Redirects:
    """
    Follows redirected calls, each in its own task, which ends when its takes have been answered.

    *link_to* returns an open connection, if any; *on_failure* is called when a redirect failed.
    *check_link* checks the node that a partition has moved to, see `PipelineParts`: after a failover it may
    lack records. A node that is still importing the partition is not checked: it has only some of the keys.
    """

    def __init__(
        self,
        connector: Connector,
        counts: StoreCounts,
        link_to: Callable[[Address], Link | None],
        on_failure: Callable[[NodePipeline, int, Exception], None],
        check_link: LinkCheck,
    ) -> None:
        self._connector = connector
        self._counts = counts
        self._link_to = link_to
        self._on_failure = on_failure
        self._check_link = check_link
        self._links: dict[Address, Link] = {}
        self._connecting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, pipeline: NodePipeline, groups: Sequence[AnyGroup], error: ErrorReply) -> bool:
        """Send *groups* of one partition to the node that *error* names; False = that is not possible."""
        if error.code not in FOLLOWED or len(self._tasks) >= CALLS_MAX or pipeline.link is None:
            return False
        work = self._follow(
            pipeline, [group for group in groups if group.waiting], error, pipeline.link.address
        )
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def release_waiting(self) -> None:
        """Fail the redirected takes, because the records that they were decided by are outdated."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Fail the redirected takes and close all connections."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._connector.limits.close_timeout_s)
        links, self._links = self._links, {}
        for link in links.values():
            link.abort()

    async def _follow(
        self, pipeline: NodePipeline, groups: list[AnyGroup], error: ErrorReply, asked: Address
    ) -> None:
        slot = "failed"
        try:
            await self._send_on(pipeline, groups, error, asked)
            slot = "ok"
        except _AllExpiredError as expired:
            if expired.__cause__ is not None:
                self._on_failure(pipeline, groups[0].compiled.partition, error)
        except CONNECT_ERRORS as failure:
            self._on_failure(pipeline, groups[0].compiled.partition, failure)
        finally:
            self._counts.values[self._counts.redirects[slot]] += 1
            for group in groups:
                pipeline.notify(group.release(), StoreFault.UNAVAILABLE)

    async def _send_on(
        self, pipeline: NodePipeline, groups: list[AnyGroup], error: ErrorReply, asked: Address
    ) -> None:
        hops = 0
        while True:
            if error.code == "TRYAGAIN":
                single = [group for group in groups if len(group.compiled.keys) == 1]
                takes = (self._take_by_key(pipeline, group, asked) for group in single)
                for failure in await asyncio.gather(*takes, return_exceptions=True):
                    if isinstance(failure, BaseException) and not isinstance(failure, _AllExpiredError):
                        raise failure
                groups = [group for group in groups if group.waiting and len(group.compiled.keys) > 1]
                if not groups:
                    return
                await self._pause(pipeline, groups, error)
                is_asking = False
            else:
                hops += 1
                if hops > HOPS_MAX or error.code not in FOLLOWED:
                    raise error
                is_asking, asked = error.code == "ASK", read_redirect(error, asked)
            sent_s = monotonic()
            reply = await self._call(pipeline, groups, asked, is_asking, pipeline.encode(groups))
            if not isinstance(reply, ErrorReply):
                pipeline.deliver(groups, reply, sent_s)
                return
            error = reply

    async def _take_by_key(self, pipeline: NodePipeline, group: AnyGroup, asked: Address) -> None:
        """Take for one group with a command per key; the generation is checked before the bucket is used."""
        compiled = group.compiled
        if compiled.generation_text:
            command = pack("GET", compiled.generation_text)
            found = await self._request(pipeline, group, asked, command)
            generation = int(found or 0)
            if generation != compiled.generation:
                pipeline.supersede(group, generation)
                return
        sent_s = monotonic()
        reply = await self._request(pipeline, group, asked, pipeline.encode([group], is_unchecked=True))
        pipeline.deliver([group], reply, sent_s)

    async def _request(self, pipeline: NodePipeline, group: AnyGroup, asked: Address, command: bytes) -> Any:
        """Send *command*, which has one key, follow its redirects and return the reply."""
        is_asking = False
        for _ in range(HOPS_MAX):
            reply = await self._call(pipeline, [group], asked, is_asking, command)
            if not isinstance(reply, ErrorReply):
                return reply
            if reply.code not in ("MOVED", "ASK"):
                raise reply
            is_asking, asked = reply.code == "ASK", read_redirect(reply, asked)
        raise HandshakeError(f"{asked} redirects in a loop ({HOPS_MAX} redirects)")

    async def _call(
        self,
        pipeline: NodePipeline,
        groups: Sequence[AnyGroup],
        address: Address,
        is_asking: bool,
        command: bytes,
    ) -> Any:
        """Send *command* to *address* and return its reply or error reply, unless all takes expire first."""
        partition = None if is_asking else groups[0].compiled.partition
        opening = asyncio.ensure_future(self._link(address, partition))
        link = await self._wait(pipeline, groups, opening)
        receiver = _Reply(asyncio.get_running_loop().create_future())
        if is_asking:
            link.send(ASKING + command, (IGNORED, receiver))
        else:
            link.send(command, (receiver,))
        return await self._wait(pipeline, groups, receiver.future)

    async def _pause(self, pipeline: NodePipeline, groups: Sequence[AnyGroup], error: ErrorReply) -> None:
        try:
            await self._wait(pipeline, groups, asyncio.ensure_future(asyncio.sleep(PAUSE_S)))
        except _AllExpiredError as expired:
            raise expired from error

    async def _wait(
        self, pipeline: NodePipeline, groups: Sequence[AnyGroup], future: asyncio.Future[Any]
    ) -> Any:
        """Return the result of *future*; meanwhile fail the takes that expire, and raise when all have."""
        try:
            while True:
                due_s = min(group.deadline_s for group in groups)
                if due_s == NEVER_S:
                    raise _AllExpiredError
                await asyncio.wait((future,), timeout=max(0.0, due_s - monotonic()))
                if future.done():
                    return future.result()
                now_s = monotonic()
                for group in groups:
                    due: list[TakeDone] = group.expire(now_s)
                    pipeline.notify(due, StoreFault.TIMEOUT)
        finally:
            if not future.cancel() and not future.cancelled():
                future.exception()  # retrieve the exception, so that asyncio does not log it

    async def _link(self, address: Address, partition: int | None) -> Link:
        """A connection to *address*, checked for *partition*; None = do not check."""
        link = await self._opened(address)
        if partition is not None:
            await self._check_link(link, (partition,))
        return link

    async def _opened(self, address: Address) -> Link:
        link = self._link_to(address) or self._links.get(address)
        if link is not None and link.is_open:
            return link
        async with self._connecting:
            link = self._links.get(address)
            if link is None or not link.is_open:
                if len(self._links) >= LINKS_MAX:
                    self._links.pop(next(iter(self._links))).abort()
                link = self._links[address] = await self._connector.open(address)
            return link


class _Reply:
    """Puts any reply, also an error reply, into a future."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future

    def replied(self, reply: Any) -> None:
        if not self.future.done():
            self.future.set_result(reply)

    def lost(self) -> None:
        if not self.future.done():
            self.future.set_exception(LinkLostError("the connection to Redis ended before the reply"))

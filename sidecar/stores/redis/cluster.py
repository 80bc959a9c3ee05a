"""Redis Cluster: which primary serves which partition, kept true while nodes fail, move and return."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector, HandshakeError
from sidecar.stores.redis.link import Link, LinkLostError
from sidecar.stores.redis.node_pipeline import NodePipeline, PipelineParts
from sidecar.stores.redis.reconnector import Reconnector
from sidecar.stores.redis.redirects import Redirects
from sidecar.stores.redis.replies import ErrorReply, Remedy, advice_of
from sidecar.stores.redis.slots import find_slots, read_redirect
from sidecar.stores.redis.take_call import Group
from sidecar.stores.redis.urls import Address

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 5.0
"""A node that is cut off from the others may not tell it: the map is asked for that often in any case."""


class ClusterTopology:
    """
    A pipeline for each primary, and `pipelines`, the pipeline of each partition.

    One task asks the nodes for the slot map: at start, when a reply or a lost link says that something
    has changed, and again with back-off until every partition has a pipeline that is connected. The list
    `pipelines` stays the same object and is changed in place.
    """

    def __init__(self, connector: Connector, parts: PipelineParts) -> None:
        """Every partition begins without a node."""
        self._connector = connector
        self._parts = parts
        self._limits = connector.limits
        self._reconnectors: dict[Address, Reconnector] = {}
        self._nowhere = NodePipeline(f"{connector.url} (no node yet)", parts)
        self._is_agreed = False
        self._wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self._told = ""
        self._marked: dict[int, str] = {}
        self._unserved: list[int] | None = None
        self._partial = ""
        self._redirects = Redirects(
            connector, parts.counts, self._link_to, self._not_followed, parts.check_link
        )
        self._task: asyncio.Task[None] | None = None
        self.pipelines = [self._nowhere] * connector.keys.partitions

    def start(self) -> None:
        """Begin to look for the nodes."""
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="store topology")

    async def tried(self) -> None:
        """Wait until the first attempt to connect everywhere has ended, well or not."""
        await self._tried.wait()

    @property
    def trouble(self) -> str:
        """See `Topology`."""
        return (
            self._told
            or self._partial
            or next((pipeline.trouble for pipeline in self.pipelines if pipeline.trouble), "")
        )

    def search(self) -> None:
        """Something has changed: ask for the slot map soon."""
        self._wanted.set()

    async def close(self) -> None:
        """End all connections."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._limits.close_timeout_s)
        await self._redirects.close()
        reconnectors, self._reconnectors = self._reconnectors, {}
        self.pipelines[:] = [self._nowhere] * len(self.pipelines)
        await asyncio.gather(*(reconnector.close() for reconnector in reconnectors.values()))
        self._nowhere.close()

    def release_waiting(self) -> None:
        """See `Topology`: those that are redirected, too."""
        for pipeline in dict.fromkeys(self.pipelines):
            pipeline.release_waiting()
        self._redirects.release_waiting()

    def redirected(self, pipeline: NodePipeline, groups: Sequence[Group], error: ErrorReply) -> bool:
        """Another node may have the slot of *groups*; True = they are sent there."""
        self.search()
        if self._redirects.follow(pipeline, groups, error):
            return True
        self._mark(groups[0].compiled.partition, error)
        return False

    def _not_followed(self, pipeline: NodePipeline, partition: int, error: Exception) -> None:
        self._mark(partition, error)
        self._parts.events.refused(pipeline, error, Remedy.FIND_NODES)

    def _mark(self, partition: int, error: Exception) -> None:
        """Nobody serves *partition* until it has been found out that somebody does."""
        if partition not in self._marked:
            self._marked[partition] = advice_of(error)
            self._wanted.set()
            self.count_unserved()

    def count_unserved(self) -> None:
        """Tell how many partitions are not served, and why, when that has changed."""
        if self._task is None or not self._tried.is_set():
            return  # not begun, or closed
        pipelines, marked = self.pipelines, self._marked
        unserved = [
            number
            for number, pipeline in enumerate(pipelines)
            if pipeline.refusal is not None or number in marked
        ]
        counts = self._parts.counts
        counts.values[counts.unserved] = len(unserved)
        if unserved == self._unserved:
            return
        was_known, self._unserved = self._unserved is not None, unserved
        if unserved:
            first = unserved[0]
            reason = (
                marked.get(first) or pipelines[first].trouble or f"{pipelines[first].name} is not connected"
            )
            self._partial = f"{len(unserved)} of {len(pipelines)} partitions are not served: {reason}"
            if not self._told:  # else why no node can be asked has been told
                log.error("the Cluster at %s: %s", self._connector.url, self._partial)
        elif was_known:
            self._partial = ""
            log.info("the Cluster at %s: every partition is served", self._connector.url)
        self._parts.events.changed(self._nowhere)

    async def _follow(self) -> None:
        backoff = self._limits.backoff()
        while True:
            self._wanted.clear()
            await self._refresh()
            await self._probe()
            self._tried.set()
            self.count_unserved()
            if self.is_whole:
                backoff.reset()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_INTERVAL_S):
                        await self._wanted.wait()
            # A short pause in any case: many replies tell of one change, and a failover takes its time.
            await asyncio.sleep(backoff.next_s())

    @property
    def is_whole(self) -> bool:
        """Whether every partition is served."""
        return not self._marked and all(pipeline.refusal is None for pipeline in self.pipelines)

    async def _probe(self) -> None:
        """Find out which of the partitions that nobody served somebody serves now."""
        for partition in tuple(self._marked):
            link = self.pipelines[partition].link
            if link is None:
                continue
            try:
                async with asyncio.timeout(self._limits.discovery_timeout_s):
                    await link.request("GET", self._connector.keys.named(partition, "layout"))
            except ErrorReply as error:
                if error.code not in ("ASK", "TRYAGAIN"):  # which a slot that is being moved replies
                    continue
            except (LinkLostError, TimeoutError):
                continue
            del self._marked[partition]

    async def _refresh(self) -> None:
        nodes = (*self._reconnectors, *self._connector.url.addresses)
        try:
            slot_map = await find_slots(self._connector, nodes)
            if not self._is_agreed:  # before anything is served: every sidecar has the same partitions
                await self._agree(slot_map.owners(self._connector.keys))
            owners = slot_map.owners(self._connector.keys)
            await self._connect(set(owners.values()))
            await self._check_moved(owners)
        except CONNECT_ERRORS as error:
            self._tell(str(error) or type(error).__name__)
            return
        if self._told:
            log.info("found the nodes of %s", self._connector.url)
            self._told = ""
        await self._assign(owners)

    async def _connect(self, addresses: set[Address]) -> None:
        """Have a reconnector for each address that has tried at least once."""
        for address in addresses - self._reconnectors.keys():
            reconnector = self._reconnectors[address] = Reconnector(
                NodePipeline(str(address), self._parts),
                self._opener(address),
                self._limits,
                self._parts.counts,
            )
            reconnector.start()
        # A connect has its own bound, so this has one.
        await asyncio.gather(*(self._reconnectors[address].tried.wait() for address in addresses))

    def _link_to(self, address: Address) -> Link | None:
        reconnector = self._reconnectors.get(address)
        return reconnector.pipeline.link if reconnector is not None else None

    def _opener(self, address: Address) -> Callable[[], Awaitable[Link]]:
        async def open_checked() -> Link:
            link = await self._connector.open(address)
            try:
                await self._check(
                    link, [n for n, pipeline in enumerate(self.pipelines) if pipeline.name == str(address)]
                )
            except BaseException:
                link.abort()
                raise
            return link

        return open_checked

    async def _check(self, link: Link, partitions: Sequence[int]) -> None:
        """Make sure that a node holds what was followed in the partitions that it serves."""
        if partitions:
            await self._parts.check_link(link, partitions)

    async def _agree(self, owners: dict[int, Address]) -> None:
        """Have the same partitions as every sidecar of the fleet."""
        if 0 not in owners:
            raise HandshakeError("no node of the Cluster serves partition 0")
        await self._connect(set(owners.values()))
        link = self._reconnectors[owners[0]].pipeline.link
        if link is None:
            raise HandshakeError(f"{owners[0]}, which serves partition 0, is not connected")
        async with asyncio.timeout(self._limits.discovery_timeout_s):
            try:
                await self._connector.agree_on_layout(link)
            except ErrorReply as error:
                if error.code != "ASK":
                    raise
                there = await self._connector.open(read_redirect(error, owners[0]))
                try:
                    await self._connector.agree_on_layout(there, is_asking=True)
                finally:
                    there.abort()
        self.pipelines[:] = [self._nowhere] * self._connector.keys.partitions
        self._is_agreed = True

    async def _check_moved(self, owners: dict[int, Address]) -> None:
        """Check the nodes that partitions have moved to, before they are taken from there."""
        moved: dict[Address, list[int]] = {}
        for partition, owner in owners.items():
            if self.pipelines[partition] is not self._reconnectors[owner].pipeline:
                moved.setdefault(owner, []).append(partition)
        for owner, partitions in moved.items():
            link = self._reconnectors[owner].pipeline.link
            if link is not None:  # else it is not taken from until it has another one, which is checked
                await self._check(link, partitions)

    async def _assign(self, owners: dict[int, Address]) -> None:
        """Send each partition's takes to its primary, and let go of nodes that serve none."""
        pipelines = [
            self._reconnectors[owners[partition]].pipeline if partition in owners else self._nowhere
            for partition in range(len(self.pipelines))
        ]
        if pipelines != self.pipelines:
            self._parts.counts.values[self._parts.counts.topology_changes] += 1
            self.pipelines[:] = pipelines
            self._parts.events.changed(pipelines[0])
        for address in self._reconnectors.keys() - set(owners.values()):
            await self._reconnectors.pop(address).close()

    def _tell(self, trouble: str) -> None:
        """Say a trouble once, not at every attempt."""
        if trouble != self._told:
            log.warning("cannot use the store at %s: %s; trying again", self._connector.url, trouble)
            self._told = trouble
            self._parts.events.changed(self._nowhere)

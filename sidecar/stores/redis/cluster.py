"""Redis Cluster: which primary serves which partition, kept up to date as nodes fail, move and return."""

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
from sidecar.stores.redis.take_call import AnyGroup
from sidecar.stores.redis.urls import Address

log = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 5.0
"""How often the slot map is read without a sign of change: a partitioned node may not report one."""


class ClusterTopology:
    """
    A pipeline for each primary, and `pipelines`, the pipeline of each partition.

    One task reads the slot map from the nodes: at start, after a redirect or a lost link, and then with
    back-off until every partition has a connected pipeline. The list `pipelines` stays the same object and
    is changed in place.
    """

    def __init__(self, connector: Connector, parts: PipelineParts) -> None:
        self._connector = connector
        self._parts = parts
        self._limits = connector.limits
        self._reconnectors: dict[Address, Reconnector] = {}
        self._no_node = NodePipeline(f"{connector.url} (no node yet)", parts)
        self._is_layout_agreed = False
        self._refresh_wanted = asyncio.Event()
        self._tried = asyncio.Event()
        self._logged_trouble = ""
        self._unserved_reasons: dict[int, str] = {}
        self._unserved: list[int] | None = None
        self._partial_trouble = ""
        self._redirects = Redirects(
            connector, parts.counts, self._link_to, self._redirect_failed, parts.check_link
        )
        self._task: asyncio.Task[None] | None = None
        self.pipelines = [self._no_node] * connector.keys.partitions

    def start(self) -> None:
        """Start the task that finds the nodes."""
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="store topology")

    async def tried(self) -> None:
        """Wait until the first attempt to connect to all nodes has succeeded or failed."""
        await self._tried.wait()

    @property
    def trouble(self) -> str:
        """See `Topology`."""
        return (
            self._logged_trouble
            or self._partial_trouble
            or next((pipeline.trouble for pipeline in self.pipelines if pipeline.trouble), "")
        )

    def search(self) -> None:
        """Read the slot map soon, because nodes may have changed."""
        self._refresh_wanted.set()

    async def close(self) -> None:
        """Close all connections."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=self._limits.close_timeout_s)
        await self._redirects.close()
        reconnectors, self._reconnectors = self._reconnectors, {}
        self.pipelines[:] = [self._no_node] * len(self.pipelines)
        await asyncio.gather(*(reconnector.close() for reconnector in reconnectors.values()))
        self._no_node.close()

    def release_waiting(self) -> None:
        """See `Topology`; redirected takes fail, too."""
        for pipeline in dict.fromkeys(self.pipelines):
            pipeline.release_waiting()
        self._redirects.release_waiting()

    def redirected(self, pipeline: NodePipeline, groups: Sequence[AnyGroup], error: ErrorReply) -> bool:
        """See `Topology`."""
        self.search()
        if self._redirects.follow(pipeline, groups, error):
            return True
        self._mark_unserved(groups[0].compiled.partition, error)
        return False

    def _redirect_failed(self, pipeline: NodePipeline, partition: int, error: Exception) -> None:
        self._mark_unserved(partition, error)
        self._parts.events.refused(pipeline, error, Remedy.FIND_NODES)

    def _mark_unserved(self, partition: int, error: Exception) -> None:
        """Count *partition* as unserved until a probe succeeds."""
        if partition not in self._unserved_reasons:
            self._unserved_reasons[partition] = advice_of(error)
            self._refresh_wanted.set()
            self.count_unserved()

    def count_unserved(self) -> None:
        """Count the unserved partitions; log and report the count when it has changed."""
        if self._task is None or not self._tried.is_set():
            return  # not started, or closed
        pipelines, reasons = self.pipelines, self._unserved_reasons
        unserved = [
            number
            for number, pipeline in enumerate(pipelines)
            if pipeline.refusal is not None or number in reasons
        ]
        counts = self._parts.counts
        counts.values[counts.unserved] = len(unserved)
        if unserved == self._unserved:
            return
        was_known, self._unserved = self._unserved is not None, unserved
        if unserved:
            first = unserved[0]
            reason = (
                reasons.get(first) or pipelines[first].trouble or f"{pipelines[first].name} is not connected"
            )
            self._partial_trouble = f"{len(unserved)} of {len(pipelines)} partitions are not served: {reason}"
            if not self._logged_trouble:  # else the log already says why no node is reachable
                log.error("the Cluster at %s: %s", self._connector.url, self._partial_trouble)
        elif was_known:
            self._partial_trouble = ""
            log.info("the Cluster at %s: every partition is served", self._connector.url)
        self._parts.events.changed(self._no_node)

    async def _follow(self) -> None:
        backoff = self._limits.backoff()
        while True:
            self._refresh_wanted.clear()
            await self._refresh()
            await self._probe()
            self._tried.set()
            self.count_unserved()
            if self.is_whole:
                backoff.reset()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_INTERVAL_S):
                        await self._refresh_wanted.wait()
            # Always pause: one change causes many error replies, and a failover takes a while.
            await asyncio.sleep(backoff.next_s())

    @property
    def is_whole(self) -> bool:
        """Whether every partition is served."""
        return not self._unserved_reasons and all(pipeline.refusal is None for pipeline in self.pipelines)

    async def _probe(self) -> None:
        """Find out which of the unserved partitions are served again."""
        for partition in tuple(self._unserved_reasons):
            link = self.pipelines[partition].link
            if link is None:
                continue
            try:
                async with asyncio.timeout(self._limits.discovery_timeout_s):
                    await link.request("GET", self._connector.keys.named(partition, "layout"))
            except ErrorReply as error:
                if error.code not in ("ASK", "TRYAGAIN"):  # the replies for a migrating slot
                    continue
            except (LinkLostError, TimeoutError):
                continue
            del self._unserved_reasons[partition]

    async def _refresh(self) -> None:
        nodes = (*self._reconnectors, *self._connector.url.addresses)
        try:
            slot_map = await find_slots(self._connector, nodes)
            if not self._is_layout_agreed:  # every sidecar must use the same number of partitions
                await self._agree_on_layout(slot_map.owners(self._connector.keys))
            owners = slot_map.owners(self._connector.keys)
            await self._connect(set(owners.values()))
            await self._check_moved(owners)
        except CONNECT_ERRORS as error:
            self._log_trouble(str(error) or type(error).__name__)
            return
        if self._logged_trouble:
            log.info("found the nodes of %s", self._connector.url)
            self._logged_trouble = ""
        await self._assign(owners)

    async def _connect(self, addresses: set[Address]) -> None:
        """Start a reconnector for each new address, and wait for the first attempt of each."""
        for address in addresses - self._reconnectors.keys():
            reconnector = self._reconnectors[address] = Reconnector(
                NodePipeline(str(address), self._parts),
                self._opener(address),
                self._limits,
                self._parts.counts,
            )
            reconnector.start()
        # Each attempt is bounded by connect_timeout_s.
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
        """Check that the node's registry history in *partitions* includes what this sidecar has read."""
        if partitions:
            await self._parts.check_link(link, partitions)

    async def _agree_on_layout(self, owners: dict[int, Address]) -> None:
        """Use the same number of partitions as every sidecar of the fleet."""
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
                target = await self._connector.open(read_redirect(error, owners[0]))
                try:
                    await self._connector.agree_on_layout(target, is_asking=True)
                finally:
                    target.abort()
        self.pipelines[:] = [self._no_node] * self._connector.keys.partitions
        self._is_layout_agreed = True

    async def _check_moved(self, owners: dict[int, Address]) -> None:
        """Check the nodes that partitions have moved to, before takes are sent there."""
        moved: dict[Address, list[int]] = {}
        for partition, owner in owners.items():
            if self.pipelines[partition] is not self._reconnectors[owner].pipeline:
                moved.setdefault(owner, []).append(partition)
        for owner, partitions in moved.items():
            link = self._reconnectors[owner].pipeline.link
            if link is not None:  # else the next link is checked before takes are sent over it
                await self._check(link, partitions)

    async def _assign(self, owners: dict[int, Address]) -> None:
        """Send each partition's takes to its primary, and close connections to nodes that serve none."""
        pipelines = [
            self._reconnectors[owners[partition]].pipeline if partition in owners else self._no_node
            for partition in range(len(self.pipelines))
        ]
        if pipelines != self.pipelines:
            self._parts.counts.values[self._parts.counts.topology_changes] += 1
            self.pipelines[:] = pipelines
            self._parts.events.changed(pipelines[0])
        for address in self._reconnectors.keys() - set(owners.values()):
            await self._reconnectors.pop(address).close()

    def _log_trouble(self, trouble: str) -> None:
        """Log *trouble* when it has changed, not at every attempt."""
        if trouble != self._logged_trouble:
            log.warning("cannot use the store at %s: %s; retrying", self._connector.url, trouble)
            self._logged_trouble = trouble
            self._parts.events.changed(self._no_node)

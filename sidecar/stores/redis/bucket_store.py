"""The bucket store in Redis: what a decision sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from sidecar.domain.bucket import BucketSet, Taken
from sidecar.observe.metrics import Metrics
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.stores.clocks import StoreClock
from sidecar.stores.protocols import StoreFault, TakeDone
from sidecar.stores.redis.cluster import ClusterTopology
from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector
from sidecar.stores.redis.counts import StoreCounts
from sidecar.stores.redis.denials import Denials
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link, LinkLostError, load_again
from sidecar.stores.redis.node_pipeline import LinkCheck, NodePipeline, PipelineParts
from sidecar.stores.redis.replies import ErrorReply, Remedy, advice_of, code_of, remedy_of
from sidecar.stores.redis.scripts import Script
from sidecar.stores.redis.server_info import evicts
from sidecar.stores.redis.single import SingleTopology
from sidecar.stores.redis.superseded import Notify, Refresh, SupersededTakes
from sidecar.stores.redis.take_call import CompiledSet, Group
from sidecar.stores.redis.urls import Address, StoreTopology, StoreUrl

log = logging.getLogger(__name__)

TELL_AGAIN_S = 10.0
"""An error that a person must mend is logged that often."""


REFUSAL_LASTS_S = 10.0
"""A refused command is the store's trouble for that long; the heartbeat is refused each second."""

TOLD_CODES = ("NOREPLICAS", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN")
"""Errors that may pass by themselves, and that a person should know of if they do not."""


class Topology(Protocol):
    """Which pipeline serves a partition, and keeping those pipelines connected."""

    pipelines: list[NodePipeline]

    @property
    def trouble(self) -> str:
        """Why some partition cannot be used, for a person to read; '' = all can be."""

    def start(self) -> None:
        """Begin to connect."""

    async def tried(self) -> None:
        """Wait until the first attempt has ended."""

    @property
    def is_whole(self) -> bool:
        """Whether every partition is served."""

    def count_unserved(self) -> None:
        """Notify how many partitions are not served, when that has changed."""

    def search(self) -> None:
        """Something has changed: look for the primaries again."""

    def redirected(self, pipeline: NodePipeline, groups: Sequence[Group], error: ErrorReply) -> bool:
        """Another node may have the slot of *groups*; True = they are sent there and told the outcome."""

    def release_waiting(self) -> None:
        """Fail the takes that were not sent to their node yet."""

    async def close(self) -> None:
        """End all connections."""


class RedisBucketStore:
    """
    A `BucketStore` that shares its buckets with every sidecar that uses the same Redis.

    `clock` tells its time, known from every take and heartbeat.

    `on_state_change(is_ready)` is called when readiness or `trouble` changes.
    `refresh(owner, generation, done)` is called when
    the server knows another generation of an integration's record than we took for, 0 = it knows none; it
    puts that record into force and calls `done`. Until then the takes wait, so that their callers find the
    new record when they are told SUPERSEDED. `check_link` judges each connection before it is used: what we
    go by must be of the history that the server holds.
    """

    def __init__(
        self,
        url: StoreUrl,
        metrics: Metrics,
        limits: StoreLimits | None = None,
        *,
        checks_generation: bool = False,
        override_clock_us: Callable[[], int] | None = None,
        turn: LoopTurn | None = None,
    ) -> None:
        """
        Nothing is opened before `start`.

        Args:
            url: where the store is.
            metrics: what is counted.
            limits: bounds, None = the defaults.
            checks_generation: whether the registry is in this Redis too, so that a take is refused as
                superseded when the integration's record has changed since.
            override_clock_us: replaces the server's clock; for tests alone, no setting leads here.
            turn: shared with the transport of the loop that it runs in, None = with none.
        """
        self.keys = KeySpace(url.prefix, url.partitions)
        self.limits = limits or StoreLimits()
        self.clock = StoreClock()
        self.on_state_change: Callable[[bool], None] | None = None
        self.refresh: Refresh | None = None
        self.check_link: LinkCheck | None = None
        self._url = url
        self._counts = StoreCounts(metrics)
        self._checks_generation = checks_generation
        self._override_clock_us = override_clock_us
        self._denials = Denials(self.limits.denials_max, self.limits.denial_s_max)
        self._compiled: dict[BucketSet, CompiledSet] = {}
        self._pipelines: list[NodePipeline] = []
        self._policies: dict[Address, str] = {}
        self._connector: Connector | None = None
        self._topology: Topology | None = None
        self.turn = turn
        self._superseded: SupersededTakes | None = None
        self._was = False, ""
        self._told: dict[str, float] = {}
        self._refusals: dict[str, tuple[str, float]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether every bucket can be taken from now."""
        return self._topology is not None and self._topology.is_whole

    @property
    def trouble(self) -> str:
        """
        What a person must mend, to read; '' = nothing.

        Either why it is not ready; or why a server refuses takes although it answers, or may forget them.
        """
        if self._topology is None:
            return ""
        if not self.is_ready:
            return self._topology.trouble
        told = [refusal for refusal, _ in self._refusals.values()]
        return (told or [self._evicts(*server) for server in self._policies.items() if server[1]] or [""])[0]

    async def start(self) -> None:
        """
        Begin to connect, and wait for the first attempt to end, well or not; it goes on by itself.

        Raises:
            StoreUrlError: a password or TLS file of the URL cannot be read.
        """
        self._url.verify()
        connector = Connector(self._url, self.keys, self.limits, holds_registry=self._checks_generation)
        connector.on_policy = self._note_policy
        self._connector = connector
        loop = asyncio.get_running_loop()
        parts = PipelineParts(
            loop,
            self.turn or LoopTurn(loop),
            self.limits,
            self._counts,
            self,
            is_cluster=self._url.kind is StoreTopology.CLUSTER,
            check_link=self._check_link,
            override_clock_us=self._override_clock_us,
            store_clock=self.clock,
            jitter=lambda: random.uniform(0.75, 1.25),  # noqa: S311 - spreads load, guards nothing
        )
        is_cluster = self._url.kind is StoreTopology.CLUSTER
        self._superseded = SupersededTakes(loop)
        self._topology = ClusterTopology(connector, parts) if is_cluster else SingleTopology(connector, parts)
        self._pipelines = self._topology.pipelines
        self._topology.start()
        await self._topology.tried()

    async def close(self) -> None:
        """Stop: whoever waits for a take is told UNAVAILABLE. Bounded by `close_timeout_s` a connection."""
        self.on_state_change = None  # whoever stops the store need not be told that it is gone
        topology, self._topology = self._topology, None
        if topology is not None:
            await topology.close()
        if self._superseded is not None:
            self._superseded.close()

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault | None:
        """Refuse from memory while the bucket is known to be empty. See `BucketStore.take_now`."""
        if buckets not in self._denials.entries:
            return None
        taken = self._denials.find(buckets, monotonic())
        if taken is not None:
            self._counts.values[self._counts.denials] += 1
        return taken

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """Take with the next batch. See `BucketStore.take_later`."""
        compiled = self._compiled.get(buckets)
        if compiled is None:
            compiled = self._compile(buckets)
        self._pipelines[compiled.partition].add(compiled, asked, timeout_s, done)

    def forget(self, owner: str) -> None:
        """Ask the server again about every bucket of integration *owner*: it was reset."""
        self._denials.forget_owner(owner)

    async def run(
        self,
        script: Script,
        owner_partition: int,
        keys: Sequence[str],
        arguments: Sequence[str | bytes | int],
    ) -> Any:
        """
        Run another script where *owner_partition* lives, off the path of decisions.

        Raises:
            LinkLostError: the node is not connected.
            ErrorReply: the server refused.
            TimeoutError: no reply within `discovery_timeout_s`.
        """
        link = self._pipelines[owner_partition].link if self._pipelines else None
        if link is None:
            raise LinkLostError(f"the store at {self._url} is not connected")
        words = (script.sha, len(keys), *keys, *arguments)
        async with asyncio.timeout(self.limits.discovery_timeout_s):
            try:
                return await link.request("EVALSHA", *words)
            except ErrorReply as error:
                remedy = remedy_of(error)
                if remedy is not Remedy.LOAD_SCRIPT:
                    self.refused(self._pipelines[owner_partition], error, remedy)
                    raise
            load_again(link, (script,))
            return await link.request("EVALSHA", *words)

    def learn_time(self, partition: int, told_us: int) -> None:
        """The node of *partition* has just told its time."""
        self.clock.learn(self._pipelines[partition].name, told_us)

    def _compile(self, buckets: BucketSet) -> CompiledSet:
        if len(self._compiled) >= self.limits.compiled_max:
            # Sets of former snapshots are never asked for again; those in use come back at once.
            self._compiled.clear()
        compiled = CompiledSet(buckets, self.keys, self._checks_generation)
        if self.keys.is_settled:  # else its keys may be wrong, and no lane takes it yet
            self._compiled[buckets] = compiled
        return compiled

    async def _check_link(self, link: Link, partitions: Sequence[int]) -> None:
        if self.check_link is not None:
            await self.check_link(link, partitions)

    def release_waiting(self) -> None:
        """Fail the takes that were not sent yet: the records that they go by no longer count."""
        if self._topology is not None:
            self._topology.release_waiting()

    async def look_at_servers(self) -> None:
        """Look again whether a server may evict keys; that one does not answer is left to takes to notice."""
        links = [pipeline.link for pipeline in dict.fromkeys(self._pipelines) if pipeline.link is not None]
        in_use = {link.address for link in links}
        self._policies = {address: policy for address, policy in self._policies.items() if address in in_use}
        since_s = monotonic() - REFUSAL_LASTS_S
        self._refusals = {name: told for name, told in self._refusals.items() if told[1] > since_s}
        for link in links:
            if self._connector is not None:
                with contextlib.suppress(*CONNECT_ERRORS):
                    await self._connector.look(link)
        self._count_policies()
        self._tell_state()

    def _note_policy(self, address: Address, policy: str) -> None:
        """The server at *address* has the evicting *policy*, '' = it evicts nothing."""
        if policy == self._policies.get(address, ""):
            return
        self._policies[address] = policy
        self._count_policies()
        self._tell_state()
        if policy:
            log.error("store: %s", self._evicts(address, policy))
        else:
            log.info("store: %s evicts no keys any more", address)

    def _evicts(self, address: Address, policy: str) -> str:
        return evicts(address, policy, holds_registry=self._checks_generation)

    def _count_policies(self) -> None:
        self._counts.values[self._counts.may_evict] = sum(map(bool, self._policies.values()))

    # What pipelines report; see `PipelineEvents`.

    def changed(self, pipeline: NodePipeline) -> None:
        """A pipeline began or ceased to take takes, or has another link."""
        if pipeline.refusal is not None:
            self.disconnected(pipeline)
        else:
            # The server may be another one, with other memories: a promoted replica, a restarted one.
            self._denials.clear()
        if self._topology is not None:
            self._topology.count_unserved()
        self._tell_state()

    def _tell_state(self) -> None:
        state = self.is_ready, self.trouble
        if state != self._was:
            self._was = state
            if self.on_state_change is not None:
                self.on_state_change(state[0])

    def disconnected(self, pipeline: NodePipeline) -> None:
        """A pipeline lost its link: perhaps its node is no longer the one to ask."""
        if self._topology is not None:
            self._topology.search()

    def emptied(self, buckets: BucketSet, taken: Taken, now_us: int, sent_s: float) -> None:
        """Remember for how long the bucket stays empty."""
        self._denials.learn(buckets, taken, now_us, sent_s, monotonic())

    def superseded(self, group: Group, generation: int, notify: Notify) -> None:
        """Have the registry's follower put the new record into force; then the takes are told."""
        self._denials.forget(group.compiled.buckets)
        assert self._superseded is not None  # made before the pipelines
        self._superseded.hold(group, generation, notify, self.refresh)

    def redirected(self, pipeline: NodePipeline, groups: Sequence[Group], error: ErrorReply) -> bool:
        """Have the takes of *groups* sent where their slot is."""
        return self._topology is not None and self._topology.redirected(pipeline, groups, error)

    def refused(self, pipeline: NodePipeline, error: Exception, remedy: Remedy) -> None:
        """Look for the nodes where that may help; say in the log what a person must mend."""
        is_misplaced = remedy is Remedy.FIND_NODES and self._url.kind is not StoreTopology.CLUSTER
        if remedy is Remedy.FIND_NODES and self._topology is not None:
            self._topology.search()
        code = code_of(error)[:32]
        if remedy is not Remedy.TELL and code not in TOLD_CODES and not is_misplaced:
            return
        now_s = monotonic()
        advice = advice_of(error)
        self._refusals[pipeline.name] = f"{pipeline.name} refuses commands: {advice}", now_s
        self._tell_state()
        if now_s - self._told.get(code, -TELL_AGAIN_S) >= TELL_AGAIN_S:
            if len(self._told) >= 64:
                self._told.clear()
            self._told[code] = now_s
            with contextlib.suppress(Exception):
                log.error("the store at %s refuses commands: %s", pipeline.name, advice)

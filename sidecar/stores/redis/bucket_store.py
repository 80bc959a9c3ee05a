"""The bucket store in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, Protocol

from sidecar.domain.bucket import BucketSet, Taken
from sidecar.observe.metrics import Metrics
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.stores.clocks import StoreClock
from sidecar.stores.protocols import StoreFault, TakeDone
from sidecar.stores.redis.cluster import ClusterTopology
from sidecar.stores.redis.connect import CONNECT_ERRORS, Connector
from sidecar.stores.redis.counter_store import RedisCounterStore
from sidecar.stores.redis.counts import StoreCounts
from sidecar.stores.redis.denials import Denials
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link, LinkLostError, load_again
from sidecar.stores.redis.node_pipeline import LinkCheck, NodePipeline, PipelineParts
from sidecar.stores.redis.replies import ErrorReply, Remedy, advice_of, code_of, remedy_of
from sidecar.stores.redis.scripts import Script
from sidecar.stores.redis.server_info import eviction_problem
from sidecar.stores.redis.single import SingleTopology
from sidecar.stores.redis.superseded import Notify, Refresh, SupersededTakes
from sidecar.stores.redis.take_call import AnyGroup, CompiledSet
from sidecar.stores.redis.urls import Address, StoreTopology, StoreUrl

log: Final = logging.getLogger(__name__)

LOG_INTERVAL_S: Final = 10.0
"""Minimum time between log entries of an error that a person must fix."""

REFUSAL_LASTS_S: Final = 10.0
"""How long a refused command is reported as the store's trouble; a heartbeat is sent each second."""

LOGGED_CODES: Final = ("NOREPLICAS", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN")
"""Errors that may be temporary and are logged because they may also persist."""


class Topology(Protocol):
    """Finds the primaries, keeps a pipeline to each connected, and knows the pipeline of each partition."""

    pipelines: list[NodePipeline]

    @property
    def trouble(self) -> str:
        """Why a partition is not served, as text for people; '' = all are served."""

    def start(self) -> None:
        """Start to connect."""

    async def tried(self) -> None:
        """Wait until the first attempt has succeeded or failed."""

    @property
    def is_whole(self) -> bool:
        """Whether every partition is served."""

    def count_unserved(self) -> None:
        """Count the unserved partitions and report when their number has changed."""

    def search(self) -> None:
        """Find the primaries again, because they may have changed."""

    def redirected(self, pipeline: NodePipeline, groups: Sequence[AnyGroup], error: ErrorReply) -> bool:
        """Send *groups* to the node that *error* names; False = that is not possible."""

    def release_waiting(self) -> None:
        """Fail the takes that were not sent to their node yet."""

    async def close(self) -> None:
        """Close all connections."""


class RedisBucketStore:
    """
    A `BucketStore` that shares its buckets with every sidecar that uses the same Redis.

    `url` is the address of the store, `clock` its clock, updated from takes and heartbeats;
    `pipelines` has the pipeline of each partition.

    `on_state_change(is_ready)` is called when readiness or `trouble` changes.
    `refresh(owner, generation, done)` is called when the server has another generation of an integration's
    record than the takes were decided by, 0 = the record does not exist; it puts the new record into force
    and calls `done`. The takes wait for that, so that their callers find the new record when they get
    SUPERSEDED. `check_link` checks before a connection is used that the server's registry history includes
    what this sidecar has read.
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
        Connect only at `start`.

        Args:
            url: the address of the store.
            metrics: where takes, errors and connections are counted.
            limits: None = the defaults.
            checks_generation: whether the registry is in this Redis, too, so that a take is refused as
                superseded when the integration's record has changed.
            override_clock_us: replaces the server's clock, only in tests.
            turn: shared with the transport of the same event loop; None = not shared.
        """
        self.keys = KeySpace(url.prefix, url.partitions)
        self.limits = limits or StoreLimits()
        self.clock = StoreClock()
        self.on_state_change: Callable[[bool], None] | None = None
        self.refresh: Refresh | None = None
        self.check_link: LinkCheck | None = None
        self.url = url
        self._counts = StoreCounts(metrics)
        self._checks_generation = checks_generation
        self._override_clock_us = override_clock_us
        self._denials = Denials(self.limits.denials_max, self.limits.denial_s_max)
        self._compiled: dict[BucketSet, CompiledSet] = {}
        self.pipelines: list[NodePipeline] = []
        self._policies: dict[Address, str] = {}
        self._connector: Connector | None = None
        self._topology: Topology | None = None
        self.turn = turn
        self._superseded: SupersededTakes | None = None
        self._reported_state = False, ""
        self._logged_s: dict[str, float] = {}
        self._refusals: dict[str, tuple[str, float]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether every partition is served."""
        return self._topology is not None and self._topology.is_whole

    @property
    def is_idle(self) -> bool:
        """Whether no take waits and no batch is in flight."""
        return all(pipeline.is_idle for pipeline in self.pipelines)

    @property
    def trouble(self) -> str:
        """
        What a person must fix, as text; '' = nothing.

        The reason why the store is not ready, why a server refuses commands, or why it may evict keys.
        """
        if self._topology is None:
            return ""
        if not self.is_ready:
            return self._topology.trouble
        refusals = [refusal for refusal, _ in self._refusals.values()]
        return (
            refusals or [self._evicts(*server) for server in self._policies.items() if server[1]] or [""]
        )[0]

    async def start(self) -> None:
        """
        Start to connect, and wait until the first attempt has succeeded or failed; reconnecting is automatic.

        Raises:
            StoreUrlError: a password or TLS file of the URL cannot be read.
        """
        self.url.verify()
        connector = Connector(self.url, self.keys, self.limits, holds_registry=self._checks_generation)
        connector.on_policy = self._note_policy
        self._connector = connector
        loop = asyncio.get_running_loop()
        parts = PipelineParts(
            loop,
            self.turn or LoopTurn(loop),
            self.limits,
            self._counts,
            self,
            is_cluster=self.url.kind is StoreTopology.CLUSTER,
            check_link=self._check_link,
            override_clock_us=self._override_clock_us,
            store_clock=self.clock,
            jitter=lambda: random.uniform(0.75, 1.25),  # noqa: S311 - spreads load, guards nothing
        )
        is_cluster = self.url.kind is StoreTopology.CLUSTER
        self._superseded = SupersededTakes(loop)
        self._topology = ClusterTopology(connector, parts) if is_cluster else SingleTopology(connector, parts)
        self.pipelines = self._topology.pipelines
        self._topology.start()
        await self._topology.tried()

    async def close(self) -> None:
        """Fail all waiting takes with UNAVAILABLE and close, in at most `close_timeout_s` per connection."""
        self.on_state_change = None  # a deliberate stop is no change to report
        topology, self._topology = self._topology, None
        if topology is not None:
            await topology.close()
        if self._superseded is not None:
            self._superseded.close()

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault | None:
        """Return the cached refusal if the bucket is known to be empty. See `BucketStore.take_now`."""
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
        self.pipelines[compiled.partition].add(compiled, asked, timeout_s, done)

    @property
    def counters(self) -> RedisCounterStore:
        """The store of the rate-limit service on the same connections."""
        return RedisCounterStore(self.keys, self._pipelines_now)

    def _pipelines_now(self) -> Sequence[NodePipeline]:
        return self.pipelines

    def forget(self, owner: str) -> None:
        """Drop cached refusals of integration *owner*, whose buckets were reset."""
        self._denials.forget_owner(owner)

    async def run(
        self,
        script: Script,
        owner_partition: int,
        keys: Sequence[str],
        arguments: Sequence[str | bytes | int],
    ) -> Any:
        """
        Run *script* on the node of *owner_partition*; not for decisions.

        Raises:
            LinkLostError: the node is not connected.
            ErrorReply: the server refused.
            TimeoutError: no reply within `discovery_timeout_s`.
        """
        link = self.pipelines[owner_partition].link if self.pipelines else None
        if link is None:
            raise LinkLostError(f"the store at {self.url} is not connected")
        words = (script.sha, len(keys), *keys, *arguments)
        async with asyncio.timeout(self.limits.discovery_timeout_s):
            try:
                return await link.request("EVALSHA", *words)
            except ErrorReply as error:
                remedy = remedy_of(error)
                if remedy is not Remedy.LOAD_SCRIPT:
                    self.refused(self.pipelines[owner_partition], error, remedy)
                    raise
            load_again(link, (script,))
            return await link.request("EVALSHA", *words)

    def update_clock(self, partition: int, node_us: int) -> None:
        """Record *node_us*, the time that the node of *partition* has just replied."""
        self.clock.update(self.pipelines[partition].name, node_us)

    def _compile(self, buckets: BucketSet) -> CompiledSet:
        if len(self._compiled) >= self.limits.compiled_max:
            # Sets of former snapshots are never used again; those in use are compiled again.
            self._compiled.clear()
        compiled = CompiledSet(buckets, self.keys, self._checks_generation)
        if self.keys.is_settled:  # else the keys may be wrong, and every pipeline still refuses takes
            self._compiled[buckets] = compiled
        return compiled

    async def _check_link(self, link: Link, partitions: Sequence[int]) -> None:
        if self.check_link is not None:
            await self.check_link(link, partitions)

    def release_waiting(self) -> None:
        """Fail the takes that were not sent yet, because they were decided by outdated records."""
        if self._topology is not None:
            self._topology.release_waiting()

    async def check_servers(self) -> None:
        """Check again whether a server may evict keys, and drop old refusals; ignores connection errors."""
        links = [pipeline.link for pipeline in dict.fromkeys(self.pipelines) if pipeline.link is not None]
        in_use = {link.address for link in links}
        self._policies = {address: policy for address, policy in self._policies.items() if address in in_use}
        since_s = monotonic() - REFUSAL_LASTS_S
        self._refusals = {name: entry for name, entry in self._refusals.items() if entry[1] > since_s}
        for link in links:
            if self._connector is not None:
                with contextlib.suppress(*CONNECT_ERRORS):
                    await self._connector.check_policy(link)
        self._count_policies()
        self._report_state()

    def _note_policy(self, address: Address, policy: str) -> None:
        """Record the evicting *policy* of the server at *address*; '' = the server evicts no keys."""
        if policy == self._policies.get(address, ""):
            return
        self._policies[address] = policy
        self._count_policies()
        self._report_state()
        if policy:
            log.error("store: %s", self._evicts(address, policy))
        else:
            log.info("store: %s no longer evicts keys", address)

    def _evicts(self, address: Address, policy: str) -> str:
        return eviction_problem(address, policy, holds_registry=self._checks_generation)

    def _count_policies(self) -> None:
        self._counts.values[self._counts.may_evict] = sum(map(bool, self._policies.values()))

    # Events of pipelines, see `PipelineEvents`.

    def changed(self, pipeline: NodePipeline) -> None:
        """Update readiness after a pipeline started or stopped accepting takes, or has another link."""
        if pipeline.refusal is not None:
            self.disconnected(pipeline)
        else:
            # The server may have other bucket levels: a promoted replica or a restarted server.
            self._denials.clear()
        if self._topology is not None:
            self._topology.count_unserved()
        self._report_state()

    def _report_state(self) -> None:
        state = self.is_ready, self.trouble
        if state != self._reported_state:
            self._reported_state = state
            if self.on_state_change is not None:
                self.on_state_change(state[0])

    def disconnected(self, pipeline: NodePipeline) -> None:
        """Find the primaries again after a pipeline lost its link."""
        if self._topology is not None:
            self._topology.search()

    def emptied(self, buckets: BucketSet, taken: Taken, now_us: int, sent_s: float) -> None:
        """Cache the refusal for as long as the bucket stays empty."""
        self._denials.add(buckets, taken, now_us, sent_s, monotonic())

    def superseded(self, group: AnyGroup, generation: int, notify: Notify) -> None:
        """Ask the registry's follower to put the new record into force before the takes are answered."""
        self._denials.forget(group.compiled.buckets)
        assert self._superseded is not None  # created before the pipelines
        self._superseded.hold(group, generation, notify, self.refresh)

    def redirected(self, pipeline: NodePipeline, groups: Sequence[AnyGroup], error: ErrorReply) -> bool:
        """Send the takes of *groups* to the node of their slot; False = that is not possible."""
        return self._topology is not None and self._topology.redirected(pipeline, groups, error)

    def refused(self, pipeline: NodePipeline, error: Exception, remedy: Remedy) -> None:
        """Find the nodes again if that may help, and log an error that a person must fix."""
        is_misplaced = remedy is Remedy.FIND_NODES and self.url.kind is not StoreTopology.CLUSTER
        if remedy is Remedy.FIND_NODES and self._topology is not None:
            self._topology.search()
        code = code_of(error)[:32]
        if remedy is not Remedy.LOG and code not in LOGGED_CODES and not is_misplaced:
            return
        now_s = monotonic()
        advice = advice_of(error)
        self._refusals[pipeline.name] = f"{pipeline.name} refuses commands: {advice}", now_s
        self._report_state()
        if now_s - self._logged_s.get(code, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            if len(self._logged_s) >= 64:
                self._logged_s.clear()
            self._logged_s[code] = now_s
            with contextlib.suppress(Exception):
                log.error("the store at %s refuses commands: %s", pipeline.name, advice)

"""
The pipeline to one node: it queues takes, sends them in batches, and answers each within its deadline.

Natural batching: takes that arrive in one turn of the event loop are sent together, see `LoopTurn`; while
`in_flight_max` batches are in flight the next one is filled. An idle node therefore gets takes at once, a
busy one gets fewer and larger calls. There is no task and no timer per take: a pipeline has one timer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias

from sidecar.domain.bucket import BucketSet, Taken
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.stores.clocks import StoreClock
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.batches import Batch, TakeQueue
from sidecar.stores.redis.breaker import Breaker, BreakerState
from sidecar.stores.redis.count_call import CounterCall, counts_hits, encode_counts, settle_counts
from sidecar.stores.redis.counts import StoreCounts
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link, LinkLostError, Receiver, load_again
from sidecar.stores.redis.replies import ErrorReply, Remedy, advice_of, remedy_of
from sidecar.stores.redis.scripts import COUNT, TAKE
from sidecar.stores.redis.superseded import Notify
from sidecar.stores.redis.take_call import (
    NEVER_S,
    AnyGroup,
    CompiledSet,
    Done,
    Group,
    UnexpectedReplyError,
    apportion,
    encode_call,
    starts_of,
)

TIMER_GRAIN_S: Final = 0.002
"""Deadlines are set this much earlier, because event loops fire timers up to a millisecond late."""

CLOCK_INTERVAL_S: Final = 0.1
"""Minimum time between updates of the store's clock from replies."""

LOOP_LATE_S: Final = 0.01
"""A timer that fires this late shows that the event loop was blocked, not that the server is slow."""


class PipelineEvents(Protocol):
    """Events that a pipeline reports to its owner."""

    def changed(self, pipeline: NodePipeline) -> None:
        """The pipeline started or stopped accepting takes, or has another link or trouble."""

    def disconnected(self, pipeline: NodePipeline) -> None:
        """The pipeline's link was lost and is being reopened."""

    def emptied(self, buckets: BucketSet, taken: Taken, now_us: int, sent_s: float) -> None:
        """A bucket is empty; the server's clock read *now_us* after *sent_s* of the monotonic clock."""

    def superseded(self, group: Group[CompiledSet], generation: int, notify: Notify) -> None:
        """The owner's record has another *generation*, 0 = it does not exist; *notify* fails the takes."""

    def refused(self, pipeline: NodePipeline, error: Exception, remedy: Remedy) -> None:
        """The server replied *error*."""

    def redirected(self, pipeline: NodePipeline, groups: Sequence[AnyGroup], error: ErrorReply) -> bool:
        """The server does not serve the slot of *groups*; True = the owner sends the takes elsewhere."""


LinkCheck: TypeAlias = Callable[[Link, Sequence[int]], Awaitable[None]]
"""Raises one of `CONNECT_ERRORS` if a server lacks registry data that it should hold."""


async def _accept_link(link: Link, partitions: Sequence[int]) -> None:
    """Accept every server."""


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """
    The parts that all pipelines of a store share.

    `is_cluster`: send one call per partition. `check_link` checks a connection for the partitions that it
    is about to serve. `override_clock_us` replaces the server's clock in tests.
    """

    loop: asyncio.AbstractEventLoop
    turn: LoopTurn
    limits: StoreLimits
    counts: StoreCounts
    events: PipelineEvents
    is_cluster: bool = False
    check_link: LinkCheck = _accept_link
    override_clock_us: Callable[[], int] | None = None
    clock: Callable[[], float] = monotonic
    jitter: Callable[[], float] = field(default=lambda: 1.0)
    store_clock: StoreClock = field(default_factory=StoreClock)


class NodePipeline:
    """
    Sends the takes of one node over its current link.

    `refusal` is the fault with which takes are refused now, None = they are accepted, and sent once there is
    a `link`. `trouble` is the reason as text for people; '' = there is none.
    Invariant: every `done` is called exactly once, with an outcome or a fault, and not from within `add`.
    """

    def __init__(self, name: str, parts: PipelineParts) -> None:
        """Create a pipeline to *name*; it refuses takes until it has a link."""
        self.name = name
        self.refusal: StoreFault | None = StoreFault.UNAVAILABLE
        self.trouble = ""
        self.link: Link | None = None
        self._parts = parts
        self._loop = parts.loop
        self._turn = parts.turn
        self._limits = parts.limits
        self._counts = parts.counts
        self._values = parts.counts.values
        self._clock = parts.clock
        self._breaker = Breaker(parts.limits.breaker_failures_max, parts.limits.probe_after_s, parts.jitter)
        self._queue = TakeQueue(parts.limits)
        # In a Cluster each partition needs its own call: early batches would mean many calls of few takes.
        self._early_takes_min = sys.maxsize if parts.is_cluster else parts.limits.early_takes_min
        self._in_flight: list[Batch] = []
        self._last_takes = 0  # of the batch that was sent last
        self._probe: _Probe | None = None
        self._is_turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = NEVER_S
        self._read_s = 0.0
        self._clock_due_s = 0.0
        self._reopen_by_s = NEVER_S
        self._is_counted = False

    # Sending takes.

    def add(self, compiled: CompiledSet | CounterCall, asked: int, timeout_s: float, done: Done) -> None:
        """Take with the next batch; *done* is called within *timeout_s*, never from within this call."""
        queue = self._queue
        if self.refusal is not None or queue.is_full:
            fault = self.refusal or StoreFault.OVERLOADED
            self._values[self._counts.faults[fault]] += 1
            self._loop.call_soon(done, fault)
            return
        deadline_s = self._clock() + timeout_s - TIMER_GRAIN_S
        queue.add(compiled, asked, deadline_s, done)
        if deadline_s < self._timer_s:
            self._watch(deadline_s)
        if not self._is_turn_due:
            self._is_turn_due = True
            self._turn.send_soon(self)

    @property
    def is_waiting(self) -> bool:
        """See `TakeSender`."""
        return bool(self._in_flight)

    @property
    def is_idle(self) -> bool:
        """Whether no take waits and no batch is in flight."""
        return not self._in_flight and not self._queue.takes

    def send_early(self) -> bool:
        """See `TakeSender`."""
        takes = self._queue.takes
        # Where calls come one at a time, there is nothing to wait for.
        is_lone = takes == 1 and self._last_takes == 1 and not self._in_flight
        return (is_lone or takes >= self._early_takes_min) and self.send_queued()

    def send_at_turn_end(self) -> bool:
        """See `TakeSender`."""
        self._is_turn_due = False
        return self.send_queued()

    def read_replies(self) -> bool:
        """See `TakeSender`. Reads at most `in_flight_max` times."""
        has_read = False
        for _ in range(self._limits.in_flight_max):
            if self.link is None or not self._in_flight or not self.link.read_now():
                break
            has_read = True
        return has_read

    def _after_replies(self) -> None:
        """Send queued takes now that a batch has finished, unless this loop turn sends them anyway."""
        if not self._is_turn_due:
            self.send_queued()
        self._turn.write_answers()

    def send_queued(self) -> bool:
        """Send queued takes up to `in_flight_max` batches; True = some were sent."""
        has_sent = False
        link = self.link
        while (
            self.refusal is None
            and len(self._in_flight) < self._limits.in_flight_max
            and link is not None
            and link.is_open
        ):
            batch = self._queue.pop()
            if batch is None:
                break
            self._send(batch)
            has_sent = True
        return has_sent

    def _send(self, batch: Batch) -> None:
        now_s = self._clock()
        batch.sent_s = now_s
        batch.overdue_s = now_s + self._limits.call_timeout_s
        batch.dead_s = now_s + self._limits.link_timeout_s
        calls = [_Call(self, batch, groups) for groups in self._calls_of(batch)]
        batch.unanswered = len(calls)
        self._in_flight.append(batch)
        self._last_takes = batch.takes
        values, counts = self._values, self._counts
        values[counts.batches] += 1
        values[counts.calls] += len(calls)
        values[counts.takes] += batch.takes
        values[counts.merged] += batch.takes - len(batch.groups)
        self._write(b"".join(self.encode(call.groups) for call in calls), calls)
        self._watch(min(batch.deadline_s, batch.overdue_s))

    def _calls_of(self, batch: Batch) -> Iterable[Sequence[AnyGroup]]:
        """The groups of each script call: one for each script, and in a Cluster for each partition."""
        is_cluster = self._parts.is_cluster
        if not is_cluster and not batch.has_counters:
            return (tuple(batch.groups.values()),)
        calls: dict[tuple[int, bool], list[AnyGroup]] = {}
        for group in batch.groups.values():
            partition = group.compiled.partition if is_cluster else 0
            calls.setdefault((partition, counts_hits(group)), []).append(group)
        return calls.values()

    def encode(self, groups: Sequence[AnyGroup], *, is_unchecked: bool = False) -> bytes:
        """The encoded script call for *groups*; *is_unchecked* = do not check generations."""
        override = self._parts.override_clock_us
        now_us = override() if override is not None else 0
        if groups and counts_hits(groups[0]):
            return encode_counts(groups, now_us)
        return encode_call(groups, now_us, is_unchecked=is_unchecked)

    def _write(self, commands: bytes, receivers: Sequence[Receiver]) -> None:
        assert self.link is not None
        try:
            self.link.send(commands, receivers)
        except LinkLostError:
            for receiver in receivers:
                receiver.lost()

    # Handling replies.

    def answered(self, call: _Call, reply: Any) -> None:
        """Handle the *reply* to a script call."""
        now_s = self._read_s = self._clock()
        batch = call.batch
        if isinstance(reply, ErrorReply):
            self._counts.error(reply.code)
            remedy = remedy_of(reply)
            if remedy is Remedy.LOAD_SCRIPT and not call.is_second and self._send_again(call):
                return
            self._finish(batch, now_s)
            if remedy is Remedy.FIND_NODES and self._parts.events.redirected(self, call.groups, reply):
                return
            self._fail(call.groups, StoreFault.UNAVAILABLE)
            self._handle_error(reply, remedy, now_s)
            return
        self._finish(batch, now_s)
        if batch.is_overdue:
            self._breaker.probe_now(now_s)
            self._watch(self._breaker.probe_at_s)
        else:
            self._breaker.succeed()
        if (
            self.deliver(call.groups, reply, batch.sent_s)
            and now_s >= self._clock_due_s
            and not batch.is_overdue
        ):
            self._update_clock(reply[0], now_s)

    def deliver(self, groups: Sequence[AnyGroup], reply: Any, sent_s: float) -> bool:
        """Deliver *reply* to the takes of *groups*, which were sent at *sent_s*; False = it is malformed."""
        try:
            if counts_hits(groups[0]):
                settle_counts(groups, reply, self._report)
                return True
            answers = starts_of(groups, reply)
        except UnexpectedReplyError as error:
            self._fail(groups, StoreFault.UNAVAILABLE)
            self._handle_error(error, Remedy.LOG, self._clock())
            return False
        for group, admitted, starts in answers:
            self._deliver(group, admitted, starts, reply[0], sent_s)
        return True

    def _update_clock(self, node_us: int, now_s: float) -> None:
        self._clock_due_s = now_s + CLOCK_INTERVAL_S
        self._parts.store_clock.update(self.name, node_us)

    def _deliver(
        self, group: Group[CompiledSet], admitted: int, starts: list[int], now_us: int, sent_s: float
    ) -> None:
        if not group.waiting:
            return  # the pipeline was closed meanwhile and has failed the takes
        if admitted < 0:
            self.supersede(group, -1 - admitted)
            return
        taken = apportion(group, starts, now_us, self._report)
        # A peek does not rebase a bucket to its quota, so it cannot tell how long the bucket stays empty.
        if not taken.remaining and group.asked and len(starts) == 1:
            self._parts.events.emptied(group.compiled.buckets, taken, now_us, sent_s)

    def supersede(self, group: Group[CompiledSet], generation: int) -> None:
        """Report that the record of the owner of *group* has another *generation*."""
        self._parts.events.superseded(group, generation, self.notify)

    def _send_again(self, call: _Call) -> bool:
        """Load the script that the server lost and repeat the call once; False = no take waits any more."""
        for group in call.groups:
            group.forget_expired()
        groups = [group for group in call.groups if group.waiting]
        if not groups or self.link is None:
            return False
        again = _Call(self, call.batch, groups, is_second=True)
        self._values[self._counts.script_loads] += 1
        self._values[self._counts.calls] += 1
        load_again(self.link, (COUNT if counts_hits(groups[0]) else TAKE,))
        self._write(self.encode(groups), (again,))
        return True

    def call_lost(self, call: _Call) -> None:
        """Fail the takes of *call*, whose link ended before the reply."""
        self._finish(call.batch, self._clock())
        self._fail(call.groups, StoreFault.UNAVAILABLE)

    def _finish(self, batch: Batch, now_s: float) -> None:
        batch.unanswered -= 1
        if not batch.unanswered:
            self._in_flight.remove(batch)
            self._counts.trip.observe_ns(round((now_s - batch.sent_s) * 1e9))

    def _handle_error(self, error: Exception, remedy: Remedy, now_s: float) -> None:
        if remedy is Remedy.WAIT and self._breaker.fail(now_s):
            self._opened()
        self._parts.events.refused(self, error, remedy)
        if remedy is Remedy.FIND_PRIMARY and self.link is not None:
            self.trouble = advice_of(error)
            self.link.abort()

    # Connecting and disconnecting.

    def attach(self, link: Link) -> None:
        """Use *link*, whose handshake has just succeeded."""
        self.link = link
        link.on_replies_read = self._after_replies
        self._read_s = self._clock()
        self._count_refusing(False)
        self._breaker.reset()
        self._values[self._counts.links] += 1
        self._reopen_by_s = NEVER_S
        self.refusal, self.trouble = None, ""
        self._parts.events.changed(self)
        self._watch(self._read_s + self._limits.keepalive_s)
        self.send_queued()

    def detach(self) -> None:
        """
        Stop using the link, which has ended.

        If the server or the network ended it, queued takes wait within their deadline while the link is
        reopened. If this side aborted it, or if reopening takes too long or fails, they are refused.
        """
        link = self.link
        if link is None:
            return
        link.on_replies_read = None
        self.link = None
        self._probe = None
        self._parts.store_clock.forget(self.name)
        self._values[self._counts.links] -= 1
        if link.is_aborted or self.refusal is not None:
            self.fail(self.trouble)
        else:
            self._reopen_by_s = self._clock() + self._limits.call_timeout_s
            self._watch(self._reopen_by_s)
            self._parts.events.disconnected(self)

    def fail(self, trouble: str) -> None:
        """Refuse takes because of *trouble* until there is a link."""
        self._reopen_by_s = NEVER_S
        is_news = trouble != self.trouble and self.refusal is not None
        self.trouble = trouble
        self._count_refusing(True)
        self._set_refusal(StoreFault.UNAVAILABLE)
        if is_news:
            self._parts.events.changed(self)
        self.notify(self._queue.release(), StoreFault.UNAVAILABLE)

    def release_waiting(self) -> None:
        """Fail the queued takes, because the records that they were decided by are outdated."""
        self.notify(self._queue.release(), StoreFault.UNAVAILABLE)

    def close(self) -> None:
        """Refuse takes from now on, and fail those that wait."""
        link = self.link
        self.detach()
        self.fail("")
        for batch in tuple(self._in_flight):
            self.notify(batch.release(), StoreFault.UNAVAILABLE)
        self._count_refusing(False)
        self._breaker.reset()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_s = None, NEVER_S
        if link is not None:
            link.abort()

    # The timer.

    def _watch(self, due_s: float) -> None:
        """Make the timer fire at *due_s* or earlier."""
        if due_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self._loop.call_later(max(0.0, due_s - self._clock()), self._tick)

    def _tick(self) -> None:
        now_s = self._clock()
        if now_s - self._timer_s > LOOP_LATE_S:
            # The event loop was blocked and replies may be waiting: read them before declaring timeouts.
            self._timer_s = now_s + LOOP_LATE_S
            self._timer = self._loop.call_later(TIMER_GRAIN_S, self._tick)
            return
        self._timer, self._timer_s = None, NEVER_S
        if self._queue.deadline_s <= now_s:
            self.notify(self._queue.expire(now_s), StoreFault.TIMEOUT)
        if self._reopen_by_s <= now_s:
            self.fail(f"{self.name} accepts no connection within {self._limits.call_timeout_s * 1e3:g} ms")
        for batch in tuple(self._in_flight):
            self._check(batch, now_s)
        self._check_probe(now_s)
        self._watch(self._next_due_s())

    def _check(self, batch: Batch, now_s: float) -> None:
        if batch.deadline_s <= now_s:
            self.notify(batch.expire(now_s), StoreFault.TIMEOUT)
        if batch.overdue_s <= now_s:
            batch.overdue_s = NEVER_S
            batch.is_overdue = True
            if self._breaker.fail(now_s):
                self._opened()
        if batch.dead_s <= now_s and self.link is not None:
            batch.dead_s = NEVER_S
            self.link.abort()

    def _check_probe(self, now_s: float) -> None:
        probe = self._probe
        if probe is not None and probe.overdue_s <= now_s:
            probe.overdue_s = NEVER_S
            self._probe_overdue(now_s)
        if probe is not None and probe.dead_s <= now_s and self.link is not None:
            probe.dead_s = NEVER_S
            self.link.abort()
        if self.link is None or self._probe is not None:
            return
        is_idle = not self._in_flight and self._read_s + self._limits.keepalive_s <= now_s
        if self._breaker.probe_at_s <= now_s or is_idle:
            if self._breaker.state is BreakerState.OPEN:
                self._breaker.begin_probe()
            self._probe = _Probe(
                self, now_s + self._limits.call_timeout_s, now_s + self._limits.link_timeout_s
            )
            self._write(self.encode(()), (self._probe,))

    def probed(self, probe: _Probe, reply: Any) -> None:
        """Handle the *reply* to a probe."""
        now_s = self._read_s = self._clock()
        if probe is not self._probe:
            return
        self._probe = None
        if isinstance(reply, ErrorReply):
            self._counts.error(reply.code)
            remedy = remedy_of(reply)
            if remedy is Remedy.LOAD_SCRIPT and self.link is not None:
                self._values[self._counts.script_loads] += 1
                load_again(self.link, (TAKE,))
            else:
                self._breaker.end_probe(is_good=False, now_s=now_s)
                self._handle_error(reply, remedy, now_s)
                self._watch(self._next_due_s())
                return
        elif probe.overdue_s < NEVER_S and isinstance(reply, list) and reply and isinstance(reply[0], int):
            self._update_clock(reply[0], now_s)
        if probe.overdue_s < NEVER_S and self._breaker.state is BreakerState.HALF_OPEN:
            self._breaker.end_probe(is_good=True, now_s=now_s)
            self._count_refusing(False)
            self.trouble = ""
            self._set_refusal(None)
        self._watch(self._next_due_s())

    def _probe_overdue(self, now_s: float) -> None:
        if self._breaker.state is BreakerState.HALF_OPEN:
            self._breaker.end_probe(is_good=False, now_s=now_s)
        elif self._breaker.fail(now_s):
            self._opened()

    def _opened(self) -> None:
        self._values[self._counts.breaker_trips] += 1
        self._count_refusing(True)
        self.trouble = f"{self.name} does not answer within {self._limits.call_timeout_s * 1e3:g} ms"
        self._set_refusal(StoreFault.UNAVAILABLE)
        self.notify(self._queue.release(), StoreFault.UNAVAILABLE)
        self._watch(self._breaker.probe_at_s)

    def _next_due_s(self) -> float:
        due_s = min(self._queue.deadline_s, self._reopen_by_s)
        for batch in self._in_flight:
            due_s = min(due_s, batch.deadline_s, batch.overdue_s, batch.dead_s)
        if self._probe is not None:
            return min(due_s, self._probe.overdue_s, self._probe.dead_s)
        if self.link is None:
            return due_s
        if not self._in_flight:
            due_s = min(due_s, self._read_s + self._limits.keepalive_s)
        return min(due_s, self._breaker.probe_at_s)

    # Answering takes.

    def _count_refusing(self, is_refusing: bool) -> None:
        """Add this node to the gauge of nodes that get no takes, or remove it."""
        self._values[self._counts.breakers_open] += is_refusing - self._is_counted
        self._is_counted = is_refusing

    def _set_refusal(self, refusal: StoreFault | None) -> None:
        if refusal is not self.refusal:
            self.refusal = refusal
            self._parts.events.changed(self)

    def _fail(self, groups: Iterable[AnyGroup], fault: StoreFault) -> None:
        for group in groups:
            self.notify(group.release(), fault)

    def notify(self, takes: Iterable[Done], fault: StoreFault) -> None:
        """Call the callbacks *takes* with *fault*."""
        slot = self._counts.faults[fault]
        for done in takes:
            self._values[slot] += 1
            try:
                done(fault)
            except Exception as error:
                self._report(error)

    def _report(self, error: Exception) -> None:
        """Report an exception of a caller's `done`, so that the other takes still get their answers."""
        self._loop.call_exception_handler({"message": "a take's callback raised", "exception": error})


class _Call:
    """One script call in flight: the receiver of its reply."""

    __slots__ = ("_pipeline", "batch", "groups", "is_second")

    def __init__(
        self, pipeline: NodePipeline, batch: Batch, groups: Sequence[AnyGroup], is_second: bool = False
    ) -> None:
        self._pipeline = pipeline
        self.batch = batch
        self.groups = groups
        self.is_second = is_second

    def replied(self, reply: Any) -> None:
        self._pipeline.answered(self, reply)

    def lost(self) -> None:
        self._pipeline.call_lost(self)


class _Probe:
    """An empty script call: a full round trip without a take."""

    __slots__ = ("_pipeline", "dead_s", "overdue_s")

    def __init__(self, pipeline: NodePipeline, overdue_s: float, dead_s: float) -> None:
        self._pipeline = pipeline
        self.overdue_s = overdue_s
        self.dead_s = dead_s

    def replied(self, reply: Any) -> None:
        self._pipeline.probed(self, reply)

    def lost(self) -> None:
        """Do nothing: the reconnector handles the loss of the link."""

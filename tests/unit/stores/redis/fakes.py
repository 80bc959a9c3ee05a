"""A loop, a clock and a link that a test holds in its hand, and a server's answers in two words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import hiredis

from sidecar.domain.bucket import BucketSet, Taken
from sidecar.rpc.loop_turn import LoopTurn
from sidecar.stores.clocks import StoreClock
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.counts import StoreCounts
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.link import Link, LinkLostError, Receiver
from sidecar.stores.redis.node_pipeline import NodePipeline, PipelineParts
from sidecar.stores.redis.replies import ErrorReply, Remedy
from sidecar.stores.redis.superseded import Notify
from sidecar.stores.redis.take_call import CompiledSet, Group
from tests.building import make_metrics

SERVER_NOW_US = 1_764_000_000_000_000
KEYS = KeySpace("t:")


class FakeTimer:
    """One call_later that has not fired."""

    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        """Fire *callback* at *due_s*."""
        self.due_s = due_s
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        """Never fire."""
        self.is_cancelled = True


class FakeLoop:
    """An event loop whose turns and time are the test's."""

    def __init__(self) -> None:
        """Stand at 1,000 s."""
        self.now_s = 1_000.0
        self.soon: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.timers: list[FakeTimer] = []
        self.exceptions: list[Exception] = []

    def clock(self) -> float:
        """The time."""
        return self.now_s

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        """For the next turn."""
        self.soon.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        """For later."""
        timer = FakeTimer(self.now_s + delay_s, callback)
        self.timers.append(timer)
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep it."""
        self.exceptions.append(context["exception"])

    def turn(self) -> None:
        """Run what was to run soon, and nothing that this adds."""
        soon, self.soon = self.soon, []
        for callback, arguments in soon:
            callback(*arguments)

    def advance(self, seconds: float) -> None:
        """Let time pass, firing each timer at its time."""
        end_s = self.now_s + seconds
        while True:
            due = [timer for timer in self.timers if not timer.is_cancelled and timer.due_s <= end_s]
            if not due:
                break
            timer = min(due, key=lambda one: one.due_s)
            self.timers.remove(timer)
            self.now_s = max(self.now_s, timer.due_s)
            timer.callback()
            self.turn()
        self.now_s = end_s

    def stall(self, seconds: float) -> None:
        """Let time pass while the loop stands still: timers fire late, at its end."""
        self.now_s += seconds
        for timer in [timer for timer in self.timers if timer.due_s <= self.now_s]:
            self.timers.remove(timer)
            if not timer.is_cancelled:
                timer.callback()


class FakeLink:
    """A link whose other end is the test: keeps commands, and hands out replies when told to."""

    def __init__(self) -> None:
        """Open, with nothing sent."""
        self.on_replies_read: Callable[[], None] | None = None
        self.writes: list[list[list[bytes]]] = []
        self.receivers: list[Receiver] = []
        self.arrived: list[Any] = []
        self.is_aborted = False
        self.is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return not self.is_closed

    def send(self, commands: bytes, receivers: Iterable[Receiver]) -> None:
        """Keep the write, parsed."""
        if self.is_closed:
            raise LinkLostError("aborted")
        reader = hiredis.Reader()
        reader.feed(commands)
        parsed = []
        while (command := reader.gets()) is not False:
            parsed.append(command)
        added = list(receivers)
        assert len(parsed) == len(added), "a receiver for each command"
        self.writes.append(cast("list[list[bytes]]", parsed))
        self.receivers += added

    def abort(self) -> None:
        """We end the connection."""
        self.is_aborted = True
        self.end()

    def end(self) -> None:
        """The connection ends: every receiver is called, a turn later than here in reality."""
        self.is_closed = True
        receivers, self.receivers = self.receivers, []
        for receiver in receivers:
            receiver.lost()

    def read_now(self) -> bool:
        """Hand out the first of the replies that have arrived unnoticed."""
        if not self.arrived:
            return False
        self.reply(self.arrived.pop(0))
        return True

    @property
    def commands(self) -> list[list[bytes]]:
        """Every command so far."""
        return [command for write in self.writes for command in write]

    def reply(self, reply: Any) -> None:
        """The next reply, and the end of a read."""
        self.receivers.pop(0).replied(reply)
        if self.on_replies_read is not None:
            self.on_replies_read()


class FakeOwner:
    """The store and the transport around a pipeline: keeps what it reports, and writes what it answers."""

    def __init__(self) -> None:
        """Nothing told yet."""
        self.states: list[StoreFault | None] = []
        self.empty: list[tuple[BucketSet, Taken, int, float]] = []
        self.newer: list[tuple[str, int]] = []
        self.errors: list[tuple[str, Remedy]] = []
        self.answers = 0
        self.is_answered = False
        self.lost_links = 0

    def flush_pending(self) -> None:
        """See `AnswerWriter`."""
        self.answers += self.is_answered
        self.is_answered = False

    def changed(self, pipeline: NodePipeline) -> None:
        """See `PipelineEvents`."""
        self.states.append(pipeline.refusal)

    def disconnected(self, pipeline: NodePipeline) -> None:
        """See `PipelineEvents`."""
        self.lost_links += 1

    def emptied(self, buckets: BucketSet, taken: Taken, now_us: int, sent_s: float) -> None:
        """See `PipelineEvents`."""
        self.empty.append((buckets, taken, now_us, sent_s))

    def superseded(self, group: Group, generation: int, notify: Notify) -> None:
        """See `PipelineEvents`."""
        self.newer.append((group.compiled.buckets.owner, generation))
        notify(group.release(), StoreFault.SUPERSEDED)

    def redirected(self, pipeline: NodePipeline, groups: Sequence[Group], error: ErrorReply) -> bool:
        """See `PipelineEvents`: there is no other node."""
        return False

    def refused(self, pipeline: NodePipeline, error: Exception, remedy: Remedy) -> None:
        """See `PipelineEvents`."""
        self.errors.append((str(error), remedy))


class Bench:
    """A pipeline with everything around it in the test's hand."""

    def __init__(self, *, is_cluster: bool = False, is_linked: bool = True, **limits: Any) -> None:
        """*limits* change the defaults."""
        self.loop = FakeLoop()
        self.owner = FakeOwner()
        self.metrics = make_metrics()
        self.limits = StoreLimits(**limits)
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.turn = LoopTurn(self.loop)
        self.clock = StoreClock(lambda: SERVER_NOW_US - 7, lambda: 0)
        self.pipeline = NodePipeline(
            "node",
            PipelineParts(
                loop,
                self.turn,
                self.limits,
                StoreCounts(self.metrics),
                self.owner,
                is_cluster=is_cluster,
                clock=self.loop.clock,
                store_clock=self.clock,
            ),
        )
        self.link = FakeLink()
        self.outcomes: dict[str, Taken | StoreFault] = {}
        self._compiled: dict[BucketSet, CompiledSet] = {}
        if is_linked:
            self.attach()

    def attach(self) -> FakeLink:
        """A fresh link."""
        self.link = FakeLink()
        self.pipeline.attach(cast(Link, self.link))
        return self.link

    def lose_link(self) -> None:
        """The server or the network ends the connection, as its reconnector sees it."""
        self.link.end()
        self.pipeline.detach()

    def fail_to_reopen(self) -> None:
        """The reconnector could not connect."""
        self.pipeline.fail("nothing listens at node")

    def take(self, name: str, buckets: BucketSet, asked: int = 1, timeout_s: float = 0.05) -> None:
        """A take whose outcome goes to `outcomes[name]`, once."""

        def done(outcome: Taken | StoreFault) -> None:
            assert name not in self.outcomes, f"{name} was reported twice"
            self.outcomes[name] = outcome
            self.owner.is_answered = True
            self.turn.write_soon(self.owner)

        compiled = self._compiled.setdefault(buckets, CompiledSet(buckets, KEYS, checks_generation=False))
        self.pipeline.add(compiled, asked, timeout_s, done)

    def count(self, name: str, *labels: str) -> int:
        """A metric of the store."""
        return self.metrics.value(f"sidecar_store_{name}", *labels)


def full_reply(*asked: int) -> list[int]:
    """What take.lua replies when each of the groups found its one bucket full and all asked are admitted."""
    return [SERVER_NOW_US, *(number for admitted in asked for number in (admitted, SERVER_NOW_US))]


def error(text: str) -> ErrorReply:
    """An error reply."""
    return ErrorReply(text)


def asked_of(call: Sequence[bytes]) -> list[int]:
    """What each group of an EVALSHA of one-bucket groups asks."""
    words = call[-1]
    return [int.from_bytes(words[at : at + 4], "little") for at in range(0, len(words), 32)]

"""Peers that take no answers, on many connections: their memory is bounded, and others are served."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.transports.fast.held import STREAM_BYTES
from sidecar.transports.fast.read_scheduler import CROWD, LATE_READ_BYTES, TURN_S, ReadScheduler
from sidecar.transports.server import Endpoint, TransportLimits
from tests.unit.transports.rig import PREFACE, ManualLoop, Rig, frame, settings_frame
from tests.unit.transports.sockets import GrpcClient, dial
from tests.waiting import eventually

HOLDERS = 60
STREAMS = 1_000
MEMORY_BYTES_MAX = 100 << 20
"""Of 60 x 1,000 untaken answers; without a bound they would take 155 MB."""
LIMITS = TransportLimits(unsent_bytes_max=64 << 20, unsent_bytes_per_peer_max=32 << 20)

SERVER = """
import asyncio, sys, uvloop
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.rpc.calls import UnaryMethod
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.listeners import parse_endpoint
from sidecar.transports.server import TransportLimits

async def main():
    metrics = Metrics(TABLE)
    methods = [UnaryMethod("/t/Echo", lambda request, call: request + bytes(500))]
    endpoints = [parse_endpoint(text) for text in sys.argv[1:]]
    started = await FastGrpcServer(methods, endpoints, TransportLimits(), metrics).start()
    print(*started, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        unsent = metrics.value("sidecar_unsent_bytes")
        closed = metrics.value("sidecar_connections_closed_total", "memory_limit")
        print(unsent, closed, flush=True)

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


class ServerProcess:
    """A server in a process of its own, whose memory can be looked at."""

    def __init__(self, *endpoints: str) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *endpoints],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.endpoints = [text.rpartition(":") for text in self._line().split()]

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def counts(self) -> tuple[int, int]:
        """`sidecar_unsent_bytes`, and how many connections it closed for holding too much."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        unsent, closed = self._line().split()
        return int(unsent), int(closed)

    @property
    def resident_bytes(self) -> int:
        """Its memory now."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(name="server")
def fixture_server() -> Iterator[ServerProcess]:
    """A server on two loopback addresses."""
    server = ServerProcess("127.0.0.1:0", "127.0.0.2:0")
    yield server
    server.close()


def hold(client: socket.socket, rig: Rig) -> None:
    """Make calls on a connection whose window is 0, as bytes, without reading."""
    calls = b"".join(rig.call_bytes()[1] for _ in range(STREAMS))
    client.settimeout(60)
    with client_errors():
        client.sendall(PREFACE + settings_frame((4, 0)) + frame(4, 1, 0) + calls)


class client_errors:
    """Ignores that the server has closed."""

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """True = it was the end of a connection."""
        return kind is not None and issubclass(kind, ConnectionError)


def test_held__is_bounded_over_all_connections(server: ServerProcess) -> None:
    """Connections with windows of 0 are closed, those that hold most first; memory comes back afterwards."""
    (_, _, port), (host, _, other_port) = server.endpoints
    before = server.resident_bytes
    most_unsent = most_resident = 0
    holders = []
    with GrpcClient(dial(Endpoint(host, int(other_port)))) as honest:
        assert honest.call() == "0"
        for _ in range(HOLDERS):
            holders.append(dial(Endpoint("127.0.0.1", int(port))))
            hold(holders[-1], Rig())
            assert honest.call() == "0"
            most_unsent = max(most_unsent, server.counts()[0])
            most_resident = max(most_resident, server.resident_bytes)
        eventually(lambda: server.counts()[1] > HOLDERS // 3, what="connections are closed")
        assert honest.call() == "0"
    assert 16 << 20 < most_unsent <= LIMITS.unsent_bytes_per_peer_max
    assert most_resident - before < MEMORY_BYTES_MAX
    for holder in holders:
        holder.close()
    eventually(lambda: server.counts()[0] == 0, what="nothing is held")
    eventually(lambda: server.resident_bytes - before < 24 << 20, what="memory is given back")


# What is counted, and who is closed.


def holding(core_of: Rig | None, streams: int, limits: TransportLimits | None = None) -> Rig:
    """A connection with so many untaken answers, on the same server as another one."""
    rig = Rig(limits, core=None if core_of is None else core_of.core, window_bytes=0)
    for _ in range(streams):
        rig.say(rig.call_bytes()[1])
    return rig


def test_held__the_one_that_holds_most_is_closed() -> None:
    """Not the one whose answer passed the bound."""
    first = holding(None, 600, TransportLimits(unsent_bytes_max=1_000 * STREAM_BYTES))
    second = holding(first, 300)
    assert not first.closed_for
    third = holding(second, 150)
    assert first.transport.is_aborted
    assert not second.transport.is_aborted
    assert not third.transport.is_aborted
    assert first.closed_for == ["memory_limit"]
    assert first.metrics.value("sidecar_unsent_bytes") == first.core.held.total > 450 * STREAM_BYTES


def test_held__requests_that_are_not_finished_count() -> None:
    """Headers alone, on as many streams as there may be: found at the next check."""
    rig = Rig(TransportLimits(unsent_bytes_max=500 * STREAM_BYTES))
    for _ in range(400):
        rig.say(rig.headers(rig.stream_id()))
    rig.loop.advance(0.3)
    assert rig.core.held.total >= 400 * STREAM_BYTES
    for _ in range(200):
        rig.say(rig.headers(rig.stream_id()))
    rig.loop.advance(0.3)
    assert rig.closed_for == ["memory_limit"]
    assert rig.core.held.total == 0


def test_held__taken_answers_and_running_calls_do_not_count() -> None:
    """An honest proxy holds nothing, however many calls it has under way."""
    rig = Rig()
    for _ in range(500):
        rig.request("/t/Keep")
        rig.request()
    rig.loop.advance(0.3)
    assert rig.core.held.total == 0
    slow = holding(rig, 10)
    assert slow.core.held.total > 0
    slow.say(settings_frame((4, 65_535)))
    slow.loop.settle()
    assert slow.core.held.total == 0


def test_held__is_forgotten_with_its_connection() -> None:
    """Whoever leaves holds nothing."""
    rig = holding(None, 100)
    assert rig.core.held.total > 100 * STREAM_BYTES
    rig.hang_up()
    assert rig.core.held.total == rig.metrics.value("sidecar_unsent_bytes") == 0


# Turns of the loop.


class Busy:
    """Connections that each take *cost_s* whenever they are resumed, and never have enough."""

    def __init__(self, scheduler: ReadScheduler, clock: list[float], cost_s: float, *, is_slow: bool) -> None:
        """Wait from now on."""
        self._scheduler, self._clock, self._cost_s, self._is_slow = scheduler, clock, cost_s, is_slow
        self.resumed = 0
        scheduler.wait(self, is_slow=is_slow)

    def resume(self) -> None:
        """Take the time, and wait again."""
        self.resumed += 1
        self._clock[0] += self._cost_s
        self._scheduler.wait(self, is_slow=self._is_slow)


def test_turns__have_a_bound_whatever_waits() -> None:
    """A turn ends in time; everybody has one in order; those whose peers read nothing come last, but come."""
    loop, clock = ManualLoop(), [0.0]
    scheduler = ReadScheduler(loop, lambda: clock[0], lambda: None)
    prompt = [Busy(scheduler, clock, 0.001, is_slow=False) for _ in range(100)]
    slow = [Busy(scheduler, clock, 0.001, is_slow=True) for _ in range(100)]
    for _ in range(50):
        before_s = clock[0]
        loop.turn()
        assert clock[0] - before_s <= TURN_S + 0.002
    assert {busy.resumed for busy in prompt} <= {3, 4, 5}
    assert sum(busy.resumed for busy in slow) == 50


def test_turns__a_late_read_waits_and_is_small() -> None:
    """When reads have taken their time of a turn, the next ones wait; what they hold is bounded."""
    rig = Rig()
    late = Rig(core=rig.core)
    clock = [0.0]
    rig.core.scheduler.clock = lambda: clock[0]
    rig.core.scheduler.now_s = 0.0
    rig.say_unread(rig.call_bytes()[1])
    assert rig.stream(1).status == 0
    clock[0] += 2 * TURN_S
    stream_id, call = late.call_bytes()
    late.say_unread(call)
    assert late.stream(stream_id).status is None
    assert not late.transport.is_reading
    assert len(late.connection.get_buffer(-1)) == LATE_READ_BYTES
    assert rig.metrics.value("sidecar_reads_postponed_total") == 1
    rig.loop.settle()
    assert late.stream(stream_id).status == 0
    assert late.transport.is_reading
    assert len(late.connection.get_buffer(-1)) > LATE_READ_BYTES


def test_turns__in_a_crowd_each_has_a_little_parsed_at_a_time() -> None:
    """Bytes wait as bytes: what is parsed of a long read, and answered, comes bit by bit."""
    rig = Rig()
    calls = b"".join(rig.call_bytes()[1] for _ in range(400))
    for _ in range(CROWD + 1):
        rig.core.scheduler.wait(IdleConnection(), is_slow=False)
    rig.say_unread(calls[:LATE_READ_BYTES])
    rig.say_unread(calls[LATE_READ_BYTES:])
    assert rig.core.scheduler.is_crowded
    assert not rig.connection.streams.has_backlog
    assert rig.connection.streams.seen < 100
    rig.loop.settle()
    assert rig.ended(0) == 400


class IdleConnection:
    """A connection that has nothing left to do when its turn comes."""

    def resume(self) -> None:
        """Nothing."""

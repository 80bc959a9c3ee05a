"""The loop: calls leave on schedule whatever the server does, and connections are opened again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from time import monotonic_ns

from loadtest.driver.connection import Call
from loadtest.driver.frames import Requests
from loadtest.driver.http1 import Http1Connection
from loadtest.driver.http2 import Http2Connection
from loadtest.driver.loops import Limits, Loop
from loadtest.driver.schedule import Segment, due_times_ns
from loadtest.driver.targets import Target, parse_target
from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.server import Endpoint, TransportLimits
from tests.building import make_metrics
from tests.conformance.transport.background import BackgroundLoop

METHOD = "/bench.Service/Call"
CALLS = 60
ANSWERS_PER_CONNECTION = 7
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class RecordingLoad:
    """Keeps every call with its latency; None = no answer."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.latencies_ns: dict[int, int | None] = {}
        self.lags_ns: list[int] = []

    def next_call(self, now_ns: int) -> tuple[int, int]:
        """Send message 0."""
        return 0, 0

    def ended(self, call: Call, message: bytes | None, read_ns: int) -> None:
        """Keep the latency."""
        self.latencies_ns[call.due_ns] = None if message is None else read_ns - call.due_ns

    def withdrawn(self, call: Call) -> None:
        """Nothing to forget."""

    def lagged(self, due_ns: int, lag_ns: int) -> None:
        """Keep the lag."""
        self.lags_ns.append(lag_ns)

    def tick(self, now_ns: int) -> None:
        """Nothing to report."""


def due() -> Iterator[int]:
    """CALLS times within 0.3 s."""
    return due_times_ns([Segment(0.3, CALLS / 0.3, CALLS / 0.3)], "uniform", 1)


@contextmanager
def answering_all_at_the_end() -> Iterator[str]:
    """The address of a server that answers no call before it has all of them."""
    calls: list[UnaryCall] = []

    def handle(message: bytes, call: UnaryCall) -> None:
        calls.append(call)
        if len(calls) == CALLS:
            for waiting in calls:
                waiting.reply(b"ok")

    loop = BackgroundLoop()
    server = loop.call(
        lambda: FastGrpcServer(
            [UnaryMethod(METHOD, handle)], [Endpoint(host="127.0.0.1")], TransportLimits(), make_metrics()
        )
    )
    try:
        [endpoint] = loop.run(server.start())
        yield str(endpoint)
    finally:
        loop.run(server.drain(5.0))
        loop.close()


def test_loop__calls_leave_on_schedule_while_the_server_says_nothing() -> None:
    """Each latency counts from the due time, so the first call waited for all others to come due."""
    load = RecordingLoad()
    with answering_all_at_the_end() as address:
        target, requests = parse_target(address), Requests(METHOD, [b"a"])
        openings = [lambda: Http2Connection(target.connect(), requests, CALLS)] * 2
        with closing(Loop(openings, load, monotonic_ns, Limits(60.0))) as loop:
            start_ns = monotonic_ns()
            loop.run_open(due(), start_ns)
    assert [due_ns - start_ns for due_ns in sorted(load.latencies_ns)] == list(due())
    last_ns = max(load.latencies_ns)
    assert all(latency >= last_ns - due_ns for due_ns, latency in load.latencies_ns.items() if latency)
    assert None not in load.latencies_ns.values()
    assert len(load.lags_ns) == CALLS


@contextmanager
def closing_often() -> Iterator[tuple[Target, list[int]]]:
    """An HTTP/1.1 server that closes each connection after some answers, instead of the next one."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[int] = []

    def serve() -> None:
        for number in count():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            accepted.append(number)
            with connection:
                for _ in range(ANSWERS_PER_CONNECTION):
                    if not connection.recv(65_536):
                        break
                    connection.sendall(ANSWER)
                connection.recv(65_536)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Target("127.0.0.1", listener.getsockname()[1]), accepted
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def test_loop__a_lost_connection_is_opened_again_and_its_call_is_lost() -> None:
    """Every call ends: with an answer, or as lost with its connection."""
    load = RecordingLoad()
    with closing_often() as (target, accepted):
        opening = partial(_open, target)
        with closing(Loop([opening], load, monotonic_ns, Limits(60.0))) as loop:
            loop.run_open(due(), monotonic_ns())
            reconnects = loop.reconnects
    lost = list(load.latencies_ns.values()).count(None)
    assert len(load.latencies_ns) == CALLS
    assert lost == CALLS // (ANSWERS_PER_CONNECTION + 1)
    assert lost - 1 <= reconnects <= len(accepted)


def _open(target: Target) -> Http1Connection:
    return Http1Connection(target.connect(), [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])


def test_loop__a_closed_loop_keeps_the_connection_full_until_the_number_is_reached() -> None:
    """No call leaves before there is room for it."""
    load = RecordingLoad()
    with answering_all_at_the_end() as address:
        target, requests = parse_target(address), Requests(METHOD, [b"a"])
        openings = [lambda: Http2Connection(target.connect(), requests, CALLS)]
        with closing(Loop(openings, load, monotonic_ns, Limits(60.0, calls=CALLS))) as loop:
            loop.run_closed(monotonic_ns())
    assert set(load.latencies_ns.values()) != {None}
    assert load.lags_ns == []


def test_loop__a_server_that_is_gone_loses_the_calls_in_time() -> None:
    """Calls that found no connection within the time-out end unanswered; the loop does not hang."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connected = [Http1Connection(ours, [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])]

    def once() -> Http1Connection:
        if connected:
            return connected.pop()
        raise ConnectionRefusedError

    load = RecordingLoad()
    with closing(Loop([once], load, monotonic_ns, Limits(0.2))) as loop:
        theirs.close()
        loop.run_open(due(), monotonic_ns())
    assert list(load.latencies_ns.values()) == [None] * CALLS

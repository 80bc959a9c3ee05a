"""One HTTP connection: requests in order, bodies, deadlines, and every way it ends."""

from __future__ import annotations

import errno

import pytest

from sidecar.transports.http1.core import READ_BYTES
from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.messages import Response
from tests.unit.transports.http1.rig import GET, HttpClient, HttpRig, KeptExchanges

LIMITS = HttpLimits()
BODY = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


def reader(exchange: Exchange) -> None:
    """A handler that answers with the body of the request."""
    body = bytearray()

    def on_change() -> None:
        nonlocal body
        body += exchange.body
        exchange.body.clear()
        if exchange.is_body_whole and not exchange.is_answered and not exchange.is_canceled:
            exchange.respond(Response(200, "text/plain", bytes(body)))
        elif not exchange.is_canceled:
            exchange.want_body()

    exchange.on_change = on_change
    on_change()


def test_connection__requests_are_answered_in_order() -> None:
    """On one connection, one after another and pipelined."""
    rig = HttpRig()
    client = rig.connect()
    client.say(GET)
    client.say(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(100)))
    assert client.answers == [(200, b"/page"), *((200, b"/%d" % number) for number in range(100))]
    assert not client.is_closed


def test_connection__a_pipelined_request_waits_for_the_answer_before_it() -> None:
    """And what comes behind it stays with the peer."""
    handler = KeptExchanges()
    client = HttpRig(handler).connect()
    client.say(GET * 10_000)
    assert len(handler.exchanges) == 1
    assert client.buffered_bytes <= READ_BYTES
    assert len(client.unsent) > 10_000 * len(GET) - 2 * READ_BYTES
    handler.answer()
    client.say(b"")
    assert (client.statuses, len(handler.exchanges)) == ([200], 1)


def test_connection__head_is_get_without_the_body() -> None:
    """With its length."""
    client = HttpRig().connect()
    client.say(GET.replace(b"GET", b"HEAD"))
    head = bytes(client.transport.output)
    assert b"content-length: 5\r\n" in head and head.endswith(b"\r\n\r\n")


def test_connection__closes_when_the_client_asks_for_it() -> None:
    """And says so; bytes after that request are no request."""
    client = HttpRig().connect()
    client.say(b"GET / HTTP/1.0\r\n\r\n" + GET)
    assert client.statuses == [200]
    assert b"connection: close\r\n" in client.transport.output
    assert client.is_closed


def test_connection__a_body_is_read_by_its_window() -> None:
    """No more than the window and a read are kept, however much comes."""
    handler = KeptExchanges()
    client = HttpRig(handler, HttpLimits(body_window_bytes=10_000)).connect()
    client.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
    [exchange] = handler.exchanges
    received = 0
    while not exchange.is_body_whole or exchange.body:
        exchange.want_body()
        client.say(b"")
        assert 0 < len(exchange.body) <= 10_000
        assert client.buffered_bytes <= 2 * READ_BYTES
        received += len(exchange.body)
        exchange.body.clear()
    assert received == 1_000_000


@pytest.mark.parametrize("piece_bytes", [1, 7, 8_192])
def test_connection__bodies_and_the_requests_behind_them(piece_bytes: int) -> None:
    """By length and in chunks, in pieces of any size."""
    client = HttpRig(reader).connect()
    chunked = (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\nT: x\r\n\r\n"
    )
    client.say(BODY + b"0123456789" + chunked + GET, piece_bytes)
    assert client.answers == [(200, b"0123456789"), (200, b"abcd"), (200, b"")]


def test_connection__a_body_that_nobody_wants_is_read_past() -> None:
    """A short one; a long one or chunks end the connection instead."""
    rig = HttpRig()
    client = rig.connect()
    client.say(BODY)
    client.say(b"0123456789" + GET)
    assert (client.statuses, client.is_closed) == ([200, 200], False)
    for head in (
        BODY.replace(b"10", b"1000000"),
        BODY.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"),
    ):
        client = rig.connect()
        client.say(head + GET * 3)
        assert (client.statuses, client.is_closed) == ([200], True)


def test_connection__asks_for_a_body_that_waits_to_be_asked_for() -> None:
    """100 Continue only when the handler wants the body; else the connection ends with the answer."""
    expecting = BODY.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    client = HttpRig(reader).connect()
    client.say(expecting)
    assert bytes(client.transport.output) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.say(b"0123456789")
    assert client.answers[-1] == (200, b"0123456789")
    client = HttpRig().connect()
    client.say(expecting)
    assert (client.statuses, client.is_closed) == ([200], True)


# Deadlines.


@pytest.mark.parametrize(
    ("sent", "timeout_s", "reason", "statuses"),
    [
        (b"", LIMITS.first_byte_timeout_s, "no_request", []),
        (b"\r\n", LIMITS.first_byte_timeout_s, "no_request", []),
        (b"GET / HT", LIMITS.head_timeout_s, "bad_request", [408]),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", LIMITS.head_timeout_s, "bad_request", [408]),
        (GET, LIMITS.idle_timeout_s, "idle", [200]),
        (GET + b"GET", LIMITS.head_timeout_s, "bad_request", [200, 408]),
    ],
)
def test_deadline__of_what_does_not_come(
    sent: bytes, timeout_s: float, reason: str, statuses: list[int]
) -> None:
    """To the second, however the time is filled; the peer has a moment to read what was said."""
    rig = HttpRig()
    client = rig.connect()
    client.say(sent)
    rig.loop.advance(timeout_s - 0.1)
    assert not client.is_closed
    rig.loop.advance(0.2)
    assert client.is_closed and client.statuses == statuses
    assert rig.closed_for == {}
    rig.loop.advance(LIMITS.linger_s + 0.1)
    assert rig.closed_for == {reason: 1}
    assert rig.core.connections == {} and rig.loop.timers == 0


def test_deadline__dripping_does_not_move_it() -> None:
    """A byte a second, of a head or of empty lines before it, is not progress."""
    for drop, timeout_s in ((b"X", LIMITS.head_timeout_s), (b"\r\n", LIMITS.first_byte_timeout_s)):
        rig = HttpRig()
        client = rig.connect()
        for _ in range(int(timeout_s) + 2):
            client.say(drop)
            rig.loop.advance(1)
        assert client.is_closed


def test_deadline__of_a_body() -> None:
    """The handler learns that nobody waits for its answer."""
    rig = HttpRig(reader)
    client = rig.connect()
    client.say(BODY)
    for _ in range(8):
        client.say(b"x")
        rig.loop.advance((LIMITS.body_timeout_s + 1) / 8)
    assert client.transport.is_aborted
    assert rig.closed_for == {"body_timeout": 1}
    assert rig.core.begin_request()  # none is lost
    assert rig.core.requests == 1


def test_deadline__of_an_answer_that_is_not_taken() -> None:
    """Nothing more is read of a peer that does not take its answer, and in the end it is cut off."""
    rig = HttpRig()
    client = rig.connect()
    client.transport.is_peer_reading = False
    client.say(GET * 100)
    assert client.transport.unread.count(b"HTTP/1.1 200") == 1
    rig.loop.advance(LIMITS.write_timeout_s + 0.1)
    assert rig.closed_for == {"slow_reader": 1}
    assert (rig.core.slow, rig.core.unsent_bytes) == ({}, 0)


def test_deadline__a_slow_reader_that_takes_it_is_served_on() -> None:
    """The time-out is for one answer."""
    rig = HttpRig()
    client = rig.connect()
    for _ in range(3):
        client.transport.is_peer_reading = False
        client.say(GET)
        rig.loop.advance(LIMITS.write_timeout_s - 1)
        client.transport.peer_reads()
    rig.settle()
    assert (client.statuses, client.is_closed) == ([200] * 3, False)


def test_deadline__of_the_end() -> None:
    """A peer that sends for ever after the last answer is heard for a moment and then cut off."""
    rig = HttpRig()
    client = rig.connect()
    client.say(b"nonsense\r\n\r\n" + b"x" * 1_000_000)
    assert (client.statuses, client.is_closed, client.buffered_bytes) == ([400], True, 0)
    rig.loop.advance(LIMITS.linger_s + 0.1)
    assert client.transport.is_aborted and rig.closed_for == {"bad_request": 1}


# The peer goes.


def test_end__of_input_after_whole_requests() -> None:
    """A client that sends no more gets the answers to what it has sent."""
    rig = HttpRig()
    client = rig.connect()
    client.say(GET + GET)
    client.hang_up()
    assert client.statuses == [200, 200]
    assert client.transport.is_closing()
    rig.settle()
    assert rig.closed_for == {"peer": 1}


def test_end__of_input_within_a_request() -> None:
    """There is nobody to answer."""
    for sent in (b"", b"GET / HT"):
        rig = HttpRig()
        client = rig.connect()
        client.say(sent)
        client.hang_up()
        rig.settle()
        assert (client.statuses, rig.closed_for) == ([], {"peer": 1})


def test_end__the_handler_is_told() -> None:
    """Also within the body; what it answers afterwards goes nowhere."""
    for handler, sent in ((KeptExchanges(), GET), (KeptExchanges(), BODY)):
        rig = HttpRig(handler)
        client = rig.connect()
        client.say(sent)
        [exchange] = handler.exchanges
        exchange.want_body()
        rig.settle()
        changes: list[bool] = []
        exchange.on_change = lambda changes=changes, exchange=exchange: changes.append(exchange.is_canceled)  # type: ignore[misc]
        client.connection.connection_lost(None)
        assert changes == [True]
        handler.answer()
        assert rig.core.requests == 0 and rig.core.connections == {}


def test_end__of_a_connection_that_the_peer_has_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some transports learn of it when the end is to be said: then it has ended."""

    def reset() -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    rig = HttpRig()
    client = rig.connect()
    monkeypatch.setattr(client.transport, "write_eof", reset)
    client.say(b"GET / HTTP/1.0\r\n\r\n")
    assert rig.closed_for == {"served": 1} and rig.core.connections == {}


def test_fault__of_a_handler_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """Once begun, an answer is broken off; one line tells of many faults."""

    def fail(exchange: Exchange) -> None:
        if exchange.request.path == b"/begun":
            exchange.begin(200, ((b"content-length", b"9"),))
            exchange.send(b"half", is_last=False)
        raise RuntimeError("broken")

    rig = HttpRig(fail)
    client = rig.connect()
    client.say(GET * 3)
    assert client.statuses == [500] * 3
    begun = rig.connect()
    begun.say(GET.replace(b"page", b"begun"))
    assert begun.transport.is_aborted and rig.closed_for == {"internal": 1}
    assert caplog.text.count("an HTTP handler failed") == 1


def test_answer__a_header_that_would_break_the_message_is_a_fault() -> None:
    """Nothing that came from elsewhere splits an answer."""

    def split(exchange: Exchange) -> None:
        exchange.respond(Response(200, "text/plain", b"", ((b"x-a", b"b\r\nSet-Cookie: c"),)))

    client = HttpRig(split).connect()
    client.say(GET)
    assert client.statuses == [500]
    assert b"Set-Cookie" not in client.transport.output


def answered(client: HttpClient) -> bytes:
    """What the client has received, without the date."""
    return b"".join(
        line for line in bytes(client.transport.output).splitlines(True) if not line.startswith(b"date:")
    )


def test_answer__without_a_length_is_chunked_or_ends_with_the_connection() -> None:
    """As the version of the request allows (RFC 9112 6.3)."""

    def stream(exchange: Exchange) -> None:
        exchange.begin(200, ())
        for part in (b"a" * 16, b"", b"b"):
            exchange.send(part, is_last=False)
        exchange.send(b"", is_last=True)

    client = HttpRig(stream).connect()
    client.say(GET)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert answered(client) == head + b"10\r\n" + b"a" * 16 + b"\r\n1\r\nb\r\n0\r\n\r\n"
    client = HttpRig(stream).connect()
    client.say(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answered(client) == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"a" * 16 + b"b"
    assert client.is_closed


def test_connection__the_whole_time_of_each_request_is_measured() -> None:
    """From its first byte to the last of its answer; requests in flight are counted."""
    durations_ns: list[int] = []
    handler = KeptExchanges()
    rig = HttpRig(handler)
    rig.core.observe_ns = durations_ns.append
    client = rig.connect()
    client.say(GET)
    assert durations_ns == []
    assert rig.metrics.value("sidecar_http_requests_running") == 1
    handler.answer()
    assert len(durations_ns) == 1
    assert durations_ns[0] > 0
    assert rig.metrics.value("sidecar_http_requests_running") == 0

"""Whole answers that a service has encoded, and requests that are handled as soon as they are read."""

from __future__ import annotations

import pytest

from sidecar.transports.http1.core import READ_BYTES
from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.limits import HttpLimits
from sidecar.transports.http1.work import DECIDING, OWN_LOOP, Pace
from tests.unit.transports.http1.rig import GET, HttpRig

ENCODED = b"429x-auth-reason: rate_limited\r\ncontent-length: 5\r\n\r\nlimit"


def encoded(exchange: Exchange) -> None:
    """Answer with bytes."""
    exchange.answer(ENCODED)


class LaterAnswers:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        """No request yet."""
        self.exchanges: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        """Keep the request."""
        self.exchanges.append(exchange)


def head_of(output: bytes) -> list[bytes]:
    """The lines of the first head, without Date."""
    lines = output.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert lines[1].startswith(b"date: ")
    return [lines[0], *lines[2:]]


@pytest.mark.parametrize(
    ("request_head", "connection", "body", "is_closed"),
    [
        (GET, [], b"limit", False),
        (GET.replace(b"GET", b"HEAD"), [], b"", False),
        (GET.replace(b"1.1", b"1.0"), [b"connection: close"], b"limit", True),
        (
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            [b"connection: keep-alive"],
            b"limit",
            False,
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", [b"connection: close"], b"limit", True),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            [b"connection: close"],
            b"limit",
            True,
        ),
    ],
)
def test_answer__head_and_body(
    request_head: bytes, connection: list[bytes], body: bytes, is_closed: bool
) -> None:
    """HEAD gets no body; a request with a body, which nobody reads, ends the connection."""
    client = HttpRig(encoded).connect()
    client.say(request_head)
    output = bytes(client.transport.output)
    assert head_of(output) == [
        b"HTTP/1.1 429 Too Many Requests",
        *connection,
        b"x-auth-reason: rate_limited",
        b"content-length: 5",
    ]
    assert output.partition(b"\r\n\r\n")[2] == body
    assert client.is_closed == is_closed


@pytest.mark.parametrize("pace", [DECIDING, OWN_LOOP])
def test_prompt__same_answers_at_every_pace(pace: Pace) -> None:
    """One after another, pipelined and split at every byte, requests are answered in order."""
    rig = HttpRig(encoded, pace=pace)
    for piece_bytes in (1, 7, READ_BYTES):
        client = rig.connect()
        client.say(GET)
        client.say(GET * 50, piece_bytes)
        assert client.statuses == [429] * 51
        assert not client.is_closed


def test_prompt__one_request_a_read(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that pipelines has one request handled at once; the rest takes turns with other peers."""
    served: list[str] = []

    def note(exchange: Exchange) -> None:
        assert exchange.request.peer is not None
        served.append(exchange.request.peer[0])
        exchange.answer(ENCODED)

    rig = HttpRig(note, pace=DECIDING)
    eager, other = rig.connect("192.0.2.1"), rig.connect("192.0.2.2")
    buffer = eager.connection.get_buffer(-1)
    data = GET * 5
    buffer[: len(data)] = data
    eager.connection.buffer_updated(len(data))
    assert served == ["192.0.2.1"]
    other.connection.get_buffer(-1)[: len(GET)] = GET
    other.connection.buffer_updated(len(GET))
    rig.settle()
    assert served[:3] == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]
    assert len(served) == 6


def test_prompt__reads_no_more_while_an_answer_waits() -> None:
    """While the store is asked, what the peer sends stays with it but for one read."""
    handler = LaterAnswers()
    client = HttpRig(handler, pace=DECIDING).connect()
    client.say(GET)
    client.say(GET * 10_000)
    assert len(handler.exchanges) == 1
    assert client.buffered_bytes <= READ_BYTES
    assert len(client.unsent) > 10_000 * len(GET) - 2 * READ_BYTES
    handler.exchanges[0].answer(ENCODED)
    client.say(b"")
    assert (client.statuses, len(handler.exchanges)) == ([429], 2)


def test_drain__a_kept_connection_may_ask_once_more() -> None:
    """A proxy that was about to send a request is answered, and told that the connection ends."""
    rig = HttpRig(encoded, HttpLimits(drain_idle_s=1.0), DECIDING)
    late, silent = rig.connect(), rig.connect()
    for client in (late, silent):
        client.say(GET)
    rig.core.is_draining = True
    for client in (late, silent):
        client.connection.drain()
    rig.loop.advance(0.9)
    late.say(GET)
    assert late.statuses == [429, 429]
    assert b"connection: close" in bytes(late.transport.output).rpartition(b"HTTP/1.1")[2]
    assert (late.is_closed, silent.is_closed) == (True, False)
    rig.loop.advance(0.2)
    assert silent.is_closed
    assert rig.metrics.value("sidecar_http_connections_closed_total", "drain") == 0
    for client in (late, silent):
        client.hang_up()
    assert rig.closed_for == {"drain": 2}


def test_drain__without_that_time_ends_idle_connections_at_once() -> None:
    """As the admin API's listener does."""
    rig = HttpRig(encoded)
    client = rig.connect()
    client.say(GET)
    rig.core.is_draining = True
    client.connection.drain()
    assert client.is_closed

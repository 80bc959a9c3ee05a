"""What answers look like on the wire, and how they wait for a peer that reads slowly."""

from __future__ import annotations

import socket

import h2.config
import h2.connection
import h2.events
import pytest

from sidecar.transports.server import TransportLimits
from tests.waiting import PATIENCE_S, eventually

from .served import Served, Servers
from .wire import END_HEADERS, HEADERS, Wire, fields, frame, message, settings

WINDOW = 65_535
"""The initial window of RFC 9113 6.9.2, which a client has until it says otherwise."""


def size_request(size: int) -> bytes:
    """The request for an answer of *size* bytes."""
    return size.to_bytes(4, "big")


def test_answer__ok_is_headers_message_trailers(served: Served) -> None:
    """An OK answer is a block of headers, the message, and trailers that end the stream."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, b"hi")
        answer = wire.finish(1)
    first, last = answer.blocks
    assert (first[":status"], first["content-type"]) == ("200", "application/grpc")
    assert "grpc-status" not in first
    assert (last["grpc-status"], answer.data, answer.reset) == ("0", message(b"hi"), None)


@pytest.mark.parametrize("method", ["Fail", "Crash", "Nothing"])
def test_answer__error_is_trailers_only(served: Served, method: str) -> None:
    """An error is one block of headers that ends the stream: Envoy retries no other form."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, b"\x05gone", method)
        answer = wire.finish(1)
    (only,) = answer.blocks
    assert (only[":status"], only["content-type"], answer.data) == ("200", "application/grpc", b"")
    assert int(only["grpc-status"]) > 0


def test_answer__message_encoding(served: Served) -> None:
    """grpc-message is percent-encoded UTF-8 with upper-case digits; printable ASCII stays as it is."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, b"\x05" + "café 100% a\n~".encode(), "Fail")
        (only,) = wire.finish(1).blocks
    assert (only["grpc-status"], only["grpc-message"]) == ("5", "caf%C3%A9 100%25 a%0A~")


def test_answer__never_compressed(served: Served) -> None:
    """Answers carry flag 0 though the client would take gzip: Envoy fails calls with compressed answers."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, size_request(10_000), "Size", grpc_accept_encoding="gzip,identity")
        answer = wire.finish(1)
    assert answer.data == message(bytes(10_000))
    assert answer.blocks[0].get("grpc-encoding", "identity") == "identity"


def test_answer__before_the_end_of_the_request(served: Served) -> None:
    """An answer that comes before the client's END_STREAM is followed by RST_STREAM(NO_ERROR)."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.headers(1, fields("Nothing"))
        assert wire.finish(1).status == 12
        wire.read_until(lambda: wire.stream(1).reset is not None)
        assert wire.stream(1).reset == 0
        wire.request(3)
        assert wire.outcome(3) == "served"


def test_flow__answer_waits_for_window_updates(served: Served) -> None:
    """An answer larger than the window stops at it, goes on with each credit, and its trailers come last."""
    size = 3 * WINDOW
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, size_request(size), "Size")
        for windows in (1, 2, 3):
            wire.read_until(lambda windows=windows: len(wire.stream(1).data) == windows * WINDOW)
            wire.ping()
            assert len(wire.stream(1).data) == windows * WINDOW
            assert not wire.stream(1).is_ended
            wire.credit(0, WINDOW)
            wire.credit(1, WINDOW)
        answer = wire.finish(1)
    assert answer.data == message(bytes(size))
    assert answer.status == 0


def test_flow__answer_waits_for_settings(served: Served) -> None:
    """A window of 0 holds the message back; SETTINGS that raise it let the message go (RFC 9113 6.9.2)."""
    with Wire(served.tcp) as wire:
        wire.start((4, 0))
        wire.request(1, b"hello")
        wire.read_until(lambda: wire.stream(1).blocks)
        wire.ping()
        assert wire.stream(1).data == b""
        wire.send(settings((4, 1_000)))
        assert wire.finish(1).data == message(b"hello")


def test_flow__window_of_one(served: Served) -> None:
    """A client that opens its window byte by byte gets the whole message, byte by byte."""
    body = message(b"hello")
    with Wire(served.tcp) as wire:
        wire.start((4, 1))
        wire.request(1, b"hello")
        for count in range(1, len(body) + 1):
            wire.read_until(lambda count=count: len(wire.stream(1).data) == count)
            wire.credit(1, 1)
        assert wire.finish(1).data == body


def test_flow__one_stream_does_not_block_another(served: Served) -> None:
    """While one stream has no window, another on the same connection is answered."""
    with Wire(served.tcp) as wire:
        wire.start((4, 10))
        wire.request(1, b"too long for ten", "Echo")
        wire.read_until(lambda: len(wire.stream(1).data) == 10)
        wire.request(3, b"short")
        assert wire.finish(3).data == message(b"short")
        wire.credit(1, 100)
        assert wire.finish(1).data == message(b"too long for ten")


def test_flow__receive_window_never_starves(served: Served) -> None:
    """Far more request bytes than any window pass through one connection: every byte is credited."""
    body = bytes(15_000)
    with Wire(served.tcp) as wire:
        wire.start((4, 1 << 20))
        wire.credit(0, 1 << 30)
        for number in range(400):
            wire.request(2 * number + 1, body)
            assert wire.finish(2 * number + 1).status == 0


def test_flow__aborted_uploads_are_credited(served: Served) -> None:
    """Bytes of calls that the client gave up count as read too: the window does not leak away."""
    with Wire(served.tcp) as wire:
        wire.start()
        for number in range(500):
            stream_id = 2 * number + 1
            wire.headers(stream_id, fields())
            wire.data(stream_id, message(bytes(12_000))[:10_000], end=False)
            wire.reset(stream_id)
        wire.request(1_001, b"still")
        assert wire.finish(1_001).data == message(b"still")


def test_h2__a_strict_client(served: Served) -> None:
    """The h2 library, which checks all it receives, finds nothing wrong in a long talk."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    received: dict[int, bytes] = {}
    statuses: dict[int, str] = {}
    calls = 30
    with socket.create_connection((served.tcp.host, served.tcp.port), PATIENCE_S) as peer:
        connection.initiate_connection()
        for number in range(calls):
            stream_id = connection.get_next_available_stream_id()
            connection.send_headers(stream_id, fields("Size" if number % 2 else "Count"))
            body = size_request(20_000) if number % 2 else b"20"
            connection.send_data(stream_id, message(body), end_stream=True)
            received[stream_id] = b""
        peer.sendall(connection.data_to_send())
        while len(statuses) < calls:
            for event in connection.receive_data(peer.recv(65_536)):
                if isinstance(event, h2.events.DataReceived):
                    received[event.stream_id] += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived):
                    statuses[event.stream_id] = dict(event.headers)["grpc-status"]
            peer.sendall(connection.data_to_send())
    assert set(statuses.values()) == {"0"}
    counted = b"".join(message(str(number).encode()) for number in range(20))
    assert sorted(received.values()) == sorted([counted, message(bytes(20_000))] * (calls // 2))


def test_stream__unread_messages_are_bounded(servers: Servers) -> None:
    """A streaming caller that reads nothing is given up once too much waits for it; its handler is told."""
    served = servers.start(TransportLimits(stream_queue_bytes_max=100_000))
    with Wire(served.tcp) as wire:
        wire.start((4, 0))
        wire.request(1, method="HoldStream")
        (call,) = served.probe.held.wait(1)
        for _ in range(40):
            served.loop.call(call.send, bytes(10_000))
        served.probe.held.wait_cancelled(1)
        served.probe.held.end_all()
        eventually(lambda: served.running() == 0, what="the slot came back")


def test_headers__index_reuse(served: Served) -> None:
    """A client that indexes its headers, as all do, is understood on its hundredth call as on its first."""
    sizes = []
    with Wire(served.tcp) as wire:
        wire.start()
        for stream_id in range(1, 201, 2):
            block = wire.block(fields())
            sizes.append(len(block))
            wire.send(frame(HEADERS, END_HEADERS, stream_id, block))
            wire.data(stream_id, message(b"hello"))
            assert wire.outcome(stream_id) == "served"
    assert sizes[-1] == len(fields()) < sizes[0]  # one byte a field: all from the table

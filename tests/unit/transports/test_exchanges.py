"""Exchanges on one connection of the fast transport, with hostile and unlucky peers."""

from __future__ import annotations

import pytest

from sidecar.rpc.calls import EXCHANGE_MESSAGES_MAX, Call, ExchangeMethod
from sidecar.transports.server import TransportLimits

from .rig import Rig, message

PATH = "/t/Exchange"
CANCEL = 8
LIMITS = TransportLimits(stream_queue_bytes_max=1_000, message_bytes_max=100, request_timeout_s=5.0)


def echo_twice(request: bytes, call: Call) -> bytes:
    """Answer with the request and its repetition."""
    return 2 * request


@pytest.fixture
def rig() -> Rig:
    """A connection to a server with an exchange."""
    return Rig(LIMITS, methods=[ExchangeMethod(PATH, echo_twice)])


def begin(rig: Rig, **changed: str) -> int:
    """Open an exchange; its stream."""
    stream_id = rig.stream_id()
    rig.say(rig.headers(stream_id, rig.fields(PATH, **changed)))
    return stream_id


def test_exchange__pieces_are_put_together(rig: Rig) -> None:
    """Messages cut across frames, and several in one frame, are each answered as they are complete."""
    stream_id = begin(rig)
    sent = message(b"one") + message(b"two") + message(b"three")
    rig.say(rig.data(stream_id, sent[:11], end=False))
    assert rig.stream(stream_id).data == message(b"oneone")
    rig.say(rig.data(stream_id, sent[11:], end=False))
    answered = message(b"oneone") + message(b"twotwo") + message(b"threethree")
    stream = rig.stream(stream_id)
    assert (stream.data, stream.status) == (answered, None)
    rig.say(rig.data(stream_id, b""))
    assert (stream.data, rig.stream(stream_id).status, rig.ended(0)) == (answered, 0, 1)
    assert rig.core.buffered_bytes == 0


def test_exchange__answers_that_are_not_taken_are_bounded() -> None:
    """A peer whose window stays shut loses the call, not the connection."""
    rig = Rig(LIMITS, methods=[ExchangeMethod(PATH, echo_twice)], window_bytes=0)
    stream_id = begin(rig)
    rig.say(rig.data(stream_id, 20 * message(bytes(100)), end=False))
    assert rig.stream(stream_id).reset == CANCEL
    assert rig.core.buffered_bytes == 0
    assert rig.goaway_codes == []


@pytest.mark.parametrize(
    ("payload", "changed", "status"),
    [
        ((EXCHANGE_MESSAGES_MAX + 1) * message(b""), {}, 8),
        (message(bytes(101)), {}, 8),
        (message(b"x", flag=1), {}, 13),
        (message(b"x", flag=1), {"grpc_encoding": "gzip"}, 12),
    ],
    ids=["too many", "too large", "marked", "compressed"],
)
def test_exchange__is_refused_as_other_requests_are(
    rig: Rig, payload: bytes, changed: dict[str, str], status: int
) -> None:
    """Each fault has its status; the stream is over and the connection serves on."""
    stream_id = begin(rig, **changed)
    rig.say(rig.data(stream_id, message(b"good") + message(b"x")[:2], end=False))
    rig.say(rig.data(stream_id, message(b"x")[2:] + payload, end=False))
    stream = rig.stream(stream_id)
    assert (stream.data[:13], stream.status) == (message(b"goodgood"), status)
    assert rig.core.buffered_bytes == 0
    assert rig.request().status == 0


@pytest.mark.parametrize(("timeout", "wait_s"), [("1S", 1.5), ("60S", 5.5)], ids=["deadline", "limit"])
def test_exchange__does_not_wait_for_ever(rig: Rig, timeout: str, wait_s: float) -> None:
    """Its deadline ends it in the middle of a message, and so does the bound on every request."""
    stream_id = begin(rig, grpc_timeout=timeout)
    rig.say(rig.data(stream_id, message(b"one") + message(b"two")[:6], end=False))
    assert rig.core.buffered_bytes == 6
    rig.loop.advance(wait_s)
    stream = rig.stream(stream_id)
    assert (stream.data, stream.status) == (message(b"oneone"), 4)
    assert rig.core.buffered_bytes == 0


def test_exchange__many_unfinished_are_bounded() -> None:
    """What is not yet a message counts towards the bound on unfinished requests."""
    limits = TransportLimits(buffered_bytes_per_connection_max=150)
    rig = Rig(limits, methods=[ExchangeMethod(PATH, echo_twice)])
    streams = [begin(rig), begin(rig)]
    for stream_id in streams:
        rig.say(rig.data(stream_id, message(bytes(200))[:100], end=False))
    assert [rig.stream(stream_id).status for stream_id in streams] == [None, 8]
    assert rig.core.buffered_bytes == 100
    rig.hang_up()
    assert rig.core.buffered_bytes == 0

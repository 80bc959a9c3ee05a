"""Calls whose every message is answered at once, by a real grpcio client on both transports."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from sidecar.rpc.calls import EXCHANGE_MESSAGES_MAX
from sidecar.rpc.statuses import StatusCode
from sidecar.transports.server import TransportLimits
from tests.waiting import PATIENCE_S, eventually

from .probe import SECRET, path
from .served import Served, Servers, channel
from .wire import AMPLE_S


class Exchange:
    """One open call: sends a message when the test says so."""

    def __init__(self, client: grpc.Channel, timeout_s: float = PATIENCE_S) -> None:
        """Open it; nothing is sent yet."""
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call: Any = client.stream_stream(path("Exchange"))(self._sent(), timeout=timeout_s)

    def _sent(self) -> Iterator[bytes]:
        while (message := self._requests.get()) is not None:
            yield message

    def ask(self, message: bytes) -> bytes:
        """The answer to *message*."""
        self._requests.put(message)
        answer: bytes = next(self.call)
        return answer

    def end(self) -> grpc.StatusCode:
        """End the request; the status of the call."""
        self._requests.put(None)
        return self.status()

    def status(self) -> grpc.StatusCode:
        """The status that the call ends with, whoever ends it; nothing but the status may come."""
        with contextlib.suppress(grpc.RpcError):
            assert list(self.call) == []
        self._requests.put(None)
        return self.call.code()


@pytest.fixture
def client(served: Served) -> Iterator[grpc.Channel]:
    """A channel to the shared server."""
    with channel(served.tcp) as opened:
        yield opened


def test_exchange__each_message_is_answered_before_the_next_is_sent(client: grpc.Channel) -> None:
    """A client that waits for each answer gets it; the end of its request ends the call OK."""
    exchange = Exchange(client)
    for message in (b"one", b"", b"x" * 60_000, b"two"):
        assert exchange.ask(message) == message
    assert exchange.end() is grpc.StatusCode.OK


def test_exchange__messages_sent_together_are_answered_in_order(client: grpc.Channel) -> None:
    """A client that does not wait gets the same answers."""
    sent = [str(number).encode() for number in range(EXCHANGE_MESSAGES_MAX)]
    assert list(client.stream_stream(path("Exchange"))(iter(sent), timeout=PATIENCE_S)) == sent


def test_exchange__may_have_one_message_but_not_none(client: grpc.Channel) -> None:
    """One message with the end of the request is an exchange, too; a call without any is refused."""
    exchange = client.stream_stream(path("Exchange"))
    assert list(exchange(iter([b"only"]), timeout=PATIENCE_S)) == [b"only"]
    with pytest.raises(grpc.RpcError) as refused:
        list(exchange(iter([]), timeout=PATIENCE_S))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_exchange__passes_more_than_every_window_holds(client: grpc.Channel) -> None:
    """The windows of stream and connection open again as messages are answered."""
    exchange = Exchange(client)
    message = bytes(60_000)
    assert [exchange.ask(message) for _ in range(200)] == [message] * 200
    assert exchange.end() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("message", "code", "detail"),
    [
        (b"fail", grpc.StatusCode.DATA_LOSS, "no more"),
        (b"crash", grpc.StatusCode.UNKNOWN, None),
        (bytes(65_537), grpc.StatusCode.RESOURCE_EXHAUSTED, None),
    ],
    ids=["fail", "crash", "too large"],
)
def test_exchange__fails_after_what_it_has_answered(
    client: grpc.Channel, message: bytes, code: grpc.StatusCode, detail: str | None
) -> None:
    """A message that cannot be answered ends the call with its status; no text of an exception is told."""
    exchange = Exchange(client)
    assert exchange.ask(b"good") == b"good"
    with pytest.raises(grpc.RpcError):
        exchange.ask(message)
    assert exchange.end() is code
    assert SECRET not in exchange.call.details()
    assert detail is None or exchange.call.details() == detail


def test_exchange__has_a_bound_on_its_messages(client: grpc.Channel, served: Served) -> None:
    """The last message within the bound is answered, the next one ends the call."""
    exchange = Exchange(client)
    for _ in range(EXCHANGE_MESSAGES_MAX):
        assert exchange.ask(b"x") == b"x"
    with pytest.raises(grpc.RpcError):
        exchange.ask(b"x")
    assert exchange.end() is grpc.StatusCode.RESOURCE_EXHAUSTED
    eventually(lambda: served.running() == 0, what="its slot came back")


def test_exchange__ends_at_its_deadline(client: grpc.Channel) -> None:
    """A deadline ends an exchange that waits for its next message."""
    exchange = Exchange(client, timeout_s=AMPLE_S)
    assert exchange.ask(b"x") == b"x"
    assert exchange.status() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_exchange__ends_when_a_request_may_last_no_longer(servers: Servers) -> None:
    """Without a deadline of its caller it ends after `request_timeout_s`."""
    served = servers.start(TransportLimits(request_timeout_s=AMPLE_S))
    with channel(served.tcp) as client:
        exchange = Exchange(client)
        assert exchange.ask(b"x") == b"x"
        assert exchange.status() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.running() == 0


def test_exchange__does_not_hold_up_a_drain(servers: Servers) -> None:
    """A tool that keeps its call open learns that the server goes, and nothing is cut off."""
    served = servers.start()
    with channel(served.tcp) as client:
        exchange = Exchange(client)
        assert exchange.ask(b"x") == b"x"
        assert served.drain(timeout_s=PATIENCE_S)
        assert exchange.status() is grpc.StatusCode.UNAVAILABLE


def test_exchange__ends_when_its_answers_are_not_read(servers: Servers) -> None:
    """
    A caller that asks and does not read keeps its slot no longer than a request may last.

    The fast transport resets it as soon as its queue is full; grpc-core makes the handler wait until then.
    """
    served = servers.start(TransportLimits(request_timeout_s=AMPLE_S))
    with channel(served.tcp) as client:
        sent = [bytes(60_000)] * 100
        call = client.stream_stream(path("Exchange"))(iter(sent), timeout=PATIENCE_S)
        if served.transport == "fast":
            eventually(lambda: not call.is_active(), what="the server resets the call")
            assert call.code() is grpc.StatusCode.CANCELLED
        else:
            eventually(lambda: served.calls(int(StatusCode.DEADLINE_EXCEEDED)) == 1, what="its handler ends")
        assert served.running() == 0
        call.cancel()


def test_exchange__a_caller_that_leaves_gives_its_slot_back(client: grpc.Channel, served: Served) -> None:
    """Cancelled in the middle, it leaves nothing behind."""
    exchange = Exchange(client)
    assert exchange.ask(b"x") == b"x"
    exchange.call.cancel()
    assert exchange.end() is grpc.StatusCode.CANCELLED
    eventually(lambda: served.running() == 0, what="its slot came back")

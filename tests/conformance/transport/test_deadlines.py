"""Deadlines and cancellation: the handler hears of them, and its slot is free only when it ends."""

from __future__ import annotations

import grpc
import pytest

from sidecar.transports.server import TransportLimits
from tests.waiting import PATIENCE_S, eventually

from .probe import path
from .served import Served, Servers, channel
from .wire import AMPLE_S, Wire, fields, frame, message


def test_deadline__reaches_the_handler(served: Served) -> None:
    """A handler sees the time left on its loop's clock: at most what the caller gave, and most of it."""
    with channel(served.tcp) as client:
        left_s = float(client.unary_unary(path("Deadline"))(b"", timeout=30.0))
    assert 20.0 < left_s <= 30.1


def test_deadline__absent(served: Served) -> None:
    """Without grpc-timeout a call has no deadline."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, b"", "Deadline")
        assert wire.finish(1).data == message(b"none")


def test_deadline__passes_for_the_client(served: Served) -> None:
    """The caller gets DEADLINE_EXCEEDED when its handler takes longer than it waits."""
    with channel(served.tcp) as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.unary_unary(path("Hold"))(b"", timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_deadline__passes_in_the_server(servers: Servers) -> None:
    """A server does not wait for the client to notice: it answers, tells the handler once, and counts."""
    served = servers.start()
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold", grpc_timeout="500m")
        assert wire.outcome(1) == "status 4"
        (call,) = served.probe.held.wait_cancelled(1)
        assert call.is_cancelled
        assert served.running() == 1
        served.probe.held.end_all()
        eventually(lambda: served.calls(4) == 1, what="the call is counted as DEADLINE_EXCEEDED")
    assert (len(served.probe.held.cancelled), served.running()) == (1, 0)


def test_deadline__zero_runs_no_handler(servers: Servers) -> None:
    """0S, which grpc-java sends for a deadline that has passed, is answered without running the handler."""
    served = servers.start()
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, grpc_timeout="0S")
        assert wire.outcome(1) == "status 4"
        wire.request(3)
        assert wire.outcome(3) == "served"
    assert served.probe.requests == 1


def test_cancel__by_the_client(servers: Servers) -> None:
    """A client that cancels in mid-call reaches the handler, whose late answer is dropped."""
    served = servers.start()
    with channel(served.tcp) as client:
        future = client.unary_unary(path("Hold")).future(b"", timeout=PATIENCE_S)
        served.probe.held.wait(1)
        future.cancel()
        (call,) = served.probe.held.wait_cancelled(1)
        assert call.is_cancelled
        served.probe.held.reply(0, b"too late")
        assert client.unary_unary(path("Echo"))(b"next", timeout=PATIENCE_S) == b"next"
    eventually(lambda: served.calls(1) == 1, what="the call is counted as CANCELLED")


@pytest.mark.parametrize("code", range(15))
def test_cancel__by_any_reset(served: Served, code: int) -> None:
    """RST_STREAM cancels whatever its code: Envoy sends INTERNAL_ERROR when a call times out."""
    held = served.probe.held
    held_before, cancelled_before = len(held.calls), len(held.cancelled)
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold")
        held.wait(held_before + 1)
        wire.reset(1, code)
        held.wait_cancelled(cancelled_before + 1)
        wire.request(3)
        assert wire.outcome(3) == "served"
    held.end_all()


def test_cancel__by_a_lost_connection(servers: Servers) -> None:
    """A connection that breaks cancels every call on it."""
    served = servers.start()
    with Wire(served.tcp) as wire:
        wire.start()
        for stream_id in range(1, 21, 2):
            wire.request(stream_id, method="Hold")
        served.probe.held.wait(10)
    served.probe.held.wait_cancelled(10)


def test_cancel__of_a_stream(servers: Servers) -> None:
    """A streaming handler is told too, and what it sends afterwards is dropped."""
    served = servers.start()
    with channel(served.tcp) as client:
        answers = client.unary_stream(path("HoldStream"))(b"", timeout=PATIENCE_S)
        (call,) = served.probe.held.wait(1)
        served.loop.call(call.send, b"one")
        assert next(answers) == b"one"
        answers.cancel()
        served.probe.held.wait_cancelled(1)
        served.loop.call(call.send, b"two")
        served.loop.call(call.finish)
    eventually(lambda: served.calls(1) == 1, what="the call is counted as CANCELLED")


def test_cancel__callback_that_fails(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """A handler whose on_cancel fails harms nobody: it is logged, its slot comes back, others are served."""
    served = servers.start()
    with channel(served.tcp) as client:
        futures = [client.unary_unary(path("HoldBadly")).future(b"", timeout=PATIENCE_S) for _ in range(3)]
        for future, count in zip(futures, (1, 2, 3), strict=True):
            served.probe.held.wait(3)
            future.cancel()
            served.probe.held.wait_cancelled(count)
        assert client.unary_unary(path("Echo"))(b"next", timeout=PATIENCE_S) == b"next"
    served.probe.held.end_all()
    assert served.running() == 0
    faults = {record.getMessage() for record in caplog.records if record.exc_info}
    assert faults == {"on_cancel of /probe.Probe/HoldBadly failed"}


def test_slots__bounded_and_freed_by_the_handlers_end(servers: Servers) -> None:
    """Past `calls_max` calls are refused; a cancelled call keeps its slot until its handler has ended."""
    served = servers.start(TransportLimits(calls_max=2))
    refusals = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)

    def is_refused(client: grpc.Channel) -> bool:
        try:
            client.unary_unary(path("Echo"))(b"", timeout=PATIENCE_S)
        except grpc.RpcError as error:
            assert error.code() in refusals
            return True
        return False

    with channel(served.tcp) as client:
        hold = client.unary_unary(path("Hold"))
        first, _second = hold.future(b"", timeout=PATIENCE_S), hold.future(b"", timeout=PATIENCE_S)
        served.probe.held.wait(2)
        assert is_refused(client)
        first.cancel()
        (cancelled,) = served.probe.held.wait_cancelled(1)
        assert is_refused(client)
        served.loop.call(cancelled.reply, b"")
        assert not is_refused(client)
        assert served.running() == 1


def test_slots__freed_by_an_unread_answer(servers: Servers) -> None:
    """Answers to callers that never read them hold no slot."""
    served = servers.start(TransportLimits(calls_max=4))
    with Wire(served.tcp) as wire:
        wire.start((4, 0))
        for stream_id in (1, 3, 5, 7):
            wire.request(stream_id)
        eventually(lambda: served.probe.requests == 4, what="all four handlers ran")
        with channel(served.unix) as client:
            assert client.unary_unary(path("Echo"))(b"x", timeout=PATIENCE_S) == b"x"
        assert served.running() == 0


def test_request__late_message(servers: Servers) -> None:
    """A request whose message does not come within `request_timeout_s` is ended; no handler runs."""
    served = servers.start(TransportLimits(request_timeout_s=AMPLE_S))
    with Wire(served.tcp) as wire:
        wire.start()
        wire.headers(1, fields())
        wire.send(frame(0, 0, 1, message(b"hello")[:7]))
        assert wire.outcome(1) in ("status 4", "rst CANCEL")
        wire.request(3)
        assert wire.outcome(3) == "served"
    assert served.probe.requests == 1

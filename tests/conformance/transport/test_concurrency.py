"""Many calls at once: late answers in any order, a thousand running, and nothing left afterwards."""

from __future__ import annotations

import asyncio

import grpc

from tests.waiting import PATIENCE_S, eventually

from .background import BackgroundLoop
from .probe import path
from .served import Servers, channel
from .wire import Wire, message

CALLS = 1_000


def test_late_replies__in_reverse_order(servers: Servers) -> None:
    """Each late answer finds its own call, though they come in the opposite order."""
    served = servers.start()
    with Wire(served.tcp) as wire:
        wire.start()
        ids = range(1, 65, 2)
        for stream_id in ids:
            wire.request(stream_id, str(stream_id).encode(), "Hold")
        served.probe.held.wait(len(ids))
        asked = served.probe.held.requests
        assert sorted(asked) == sorted(str(stream_id).encode() for stream_id in ids)
        for index in reversed(range(len(ids))):
            served.probe.held.reply(index, b"answer to " + asked[index])
        for stream_id in ids:
            assert wire.finish(stream_id).data == message(b"answer to %d" % stream_id)


def test_concurrent__thousand_calls(servers: Servers) -> None:
    """A thousand calls run at one time on one connection, and each gets its own answer."""
    served = servers.start()
    with channel(served.tcp) as client:
        hold = client.unary_unary(path("Hold"))
        futures = [hold.future(str(number).encode(), timeout=60.0) for number in range(CALLS)]
        served.probe.held.wait(CALLS)
        assert served.running() == CALLS
        served.loop.run(_answer_all(served.probe.held))
        assert [future.result(PATIENCE_S) for future in futures] == [
            str(number).encode() for number in range(CALLS)
        ]
    eventually(lambda: served.calls(0) == CALLS, what="every call was counted OK")
    assert served.running() == 0


async def _answer_all(held: object) -> None:
    for call, request in zip(held.calls, held.requests, strict=True):  # type: ignore[attr-defined]
        call.reply(request)


def test_concurrent__many_connections(servers: Servers) -> None:
    """Connections do not disturb each other: 40 of them, half of which vanish in mid-call."""
    served = servers.start()
    wires = [Wire(served.tcp if number % 2 else served.unix) for number in range(40)]
    try:
        for wire in wires:
            wire.start()
            wire.request(1, method="Hold")
        served.probe.held.wait(40)
        for wire in wires[::2]:
            wire.socket.close()
        served.probe.held.wait_cancelled(20)
        served.loop.run(_answer_all(served.probe.held))
        assert {wire.outcome(1) for wire in wires[1::2]} == {"served"}
    finally:
        for wire in wires:
            wire.socket.close()


def test_leaks__no_task_and_no_slot_left(servers: Servers, background: BackgroundLoop) -> None:
    """After answers, failures, crashes, cancellations and a drain, no task and no slot is left."""
    before = background.call(lambda: len(asyncio.all_tasks()))
    served = servers.start()
    with channel(served.tcp) as client:
        for method in ("Echo", "Crash", "Fail", "Nothing"):
            client.unary_unary(path(method)).future(b"\x05", timeout=PATIENCE_S).exception(PATIENCE_S)
        held = [client.unary_unary(path("Hold")).future(b"", timeout=PATIENCE_S) for _ in range(10)]
        served.probe.held.wait(10)
        for future in held:
            future.cancel()
        served.probe.held.wait_cancelled(10)
        served.probe.held.end_all()
        assert served.drain()
    assert served.running() == 0
    eventually(
        lambda: background.call(lambda: len(asyncio.all_tasks())) <= before,
        what="the tasks of the server ended",
    )


def test_concurrent__cancelled_futures(servers: Servers) -> None:
    """Hundreds of cancellations while others are served: every served call is right."""
    served = servers.start()
    with channel(served.tcp) as client:
        hold, echo = client.unary_unary(path("Hold")), client.unary_unary(path("Echo"))
        for number in range(200):
            doomed = hold.future(b"", timeout=PATIENCE_S)
            kept = echo.future(str(number).encode(), timeout=PATIENCE_S)
            doomed.cancel()
            assert kept.result(PATIENCE_S) == str(number).encode()
            assert doomed.code() is grpc.StatusCode.CANCELLED

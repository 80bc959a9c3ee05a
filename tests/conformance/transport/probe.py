"""
The service that the suite calls: one method for each way in which a handler can behave.

Messages are raw bytes. What happened inside is visible to the test through `HeldCalls`, whose waits
have a deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from sidecar.rpc.calls import (
    Call,
    ExchangeMethod,
    Method,
    StreamCall,
    StreamMethod,
    UnaryCall,
    UnaryMethod,
)
from sidecar.rpc.statuses import RpcError, StatusCode
from tests.waiting import PATIENCE_S

from .background import BackgroundLoop

SECRET = "a text that no caller may see"


def path(method: str) -> str:
    """The full path of a method of this service."""
    return f"/probe.Probe/{method}"


class Held(Protocol):
    """What a test does with a kept call."""

    is_cancelled: bool


class HeldCalls:
    """Calls whose handlers wait for the test; also which of them were told of a cancellation."""

    def __init__(self, loop: BackgroundLoop) -> None:
        """Answer through *loop*, the one that the handlers run on."""
        self.loop = loop
        self._changed = threading.Condition()
        self.calls: list[Call] = []
        self.requests: list[bytes] = []
        self.cancelled: list[Call] = []

    def keep(self, request: bytes, call: Call) -> None:
        """Note *call*; runs on the event loop."""
        call.on_cancel = lambda: self._note_cancelled(call)
        with self._changed:
            self.calls.append(call)
            self.requests.append(request)
            self._changed.notify_all()

    def _note_cancelled(self, call: Call) -> None:
        with self._changed:
            self.cancelled.append(call)
            self._changed.notify_all()

    def wait(self, count: int) -> list[Call]:
        """Wait until *count* calls are held; returns all of them, oldest first."""
        return self._wait_for(lambda: self.calls, count, "held calls")

    def wait_cancelled(self, count: int) -> list[Call]:
        """Wait until *count* held calls were cancelled."""
        return self._wait_for(lambda: self.cancelled, count, "cancelled calls")

    def _wait_for(self, calls: Callable[[], list[Call]], count: int, what: str) -> list[Call]:
        with self._changed:
            in_time = self._changed.wait_for(lambda: len(calls()) >= count, PATIENCE_S)
            assert in_time, f"{len(calls())} {what} after {PATIENCE_S} s, expected {count}"
            return list(calls())

    def reply(self, index: int, message: bytes) -> None:
        """Answer the held unary call *index*."""
        call = self.calls[index]
        self.loop.call(call.reply, message)  # type: ignore[attr-defined]

    def end_all(self) -> None:
        """End every held call; those that have ended ignore it."""
        for call in list(self.calls):
            self.loop.call(call.fail, StatusCode.ABORTED, "the test is over")


class ProbeService:
    """Handlers for the suite and the calls they hold."""

    def __init__(self, loop: BackgroundLoop) -> None:
        """Serve on *loop*."""
        self.held = HeldCalls(loop)
        self.requests = 0

    def methods(self) -> tuple[Method, ...]:
        """The method table."""
        return (
            UnaryMethod(path("Echo"), self._echo),
            UnaryMethod(path("Size"), self._size),
            UnaryMethod(path("Metadata"), self._metadata),
            UnaryMethod(path("Deadline"), self._deadline),
            UnaryMethod(path("Fail"), self._fail),
            UnaryMethod(path("Crash"), self._crash),
            UnaryMethod(path("Twice"), self._twice),
            UnaryMethod(path("Hold"), self._hold),
            UnaryMethod(path("HoldBadly"), self._hold_badly),
            StreamMethod(path("Count"), self._count),
            StreamMethod(path("FailAfterTwo"), self._fail_after_two),
            StreamMethod(path("CrashStream"), self._crash_stream),
            StreamMethod(path("HoldStream"), self._hold_stream),
            ExchangeMethod(path("Exchange"), self._exchange),
        )

    def _echo(self, request: bytes, call: UnaryCall) -> bytes:
        self.requests += 1
        return request

    def _size(self, request: bytes, call: UnaryCall) -> bytes:
        """As many bytes as the first four of the request say."""
        return bytes(int.from_bytes(request[:4], "big"))

    def _metadata(self, request: bytes, call: UnaryCall) -> bytes:
        """The metadata that the request names; '(absent)' when there is none."""
        value = call.metadata(request.decode())
        return b"(absent)" if value is None else value.encode()

    def _deadline(self, request: bytes, call: UnaryCall) -> bytes:
        """The seconds left, as text; 'none' without a deadline."""
        if call.deadline_s is None:
            return b"none"
        return f"{call.deadline_s - self.held.loop.loop.time():.3f}".encode()

    def _fail(self, request: bytes, call: UnaryCall) -> bytes:
        """Fail with the code of the first byte and the rest as detail."""
        raise RpcError(StatusCode(request[0]), request[1:].decode())

    def _crash(self, request: bytes, call: UnaryCall) -> bytes:
        raise ValueError(SECRET)

    def _twice(self, request: bytes, call: UnaryCall) -> None:
        """End the call three times; only the first counts."""
        call.reply(b"first")
        call.reply(b"second")
        call.fail(StatusCode.INTERNAL, "third")

    def _hold(self, request: bytes, call: UnaryCall) -> None:
        self.held.keep(request, call)

    def _hold_badly(self, request: bytes, call: UnaryCall) -> None:
        """As Hold, but its callback fails when the call is cancelled."""
        self.held.keep(request, call)
        note = call.on_cancel

        def fail() -> None:
            assert note is not None
            note()
            raise ValueError(SECRET)

        call.on_cancel = fail

    def _count(self, request: bytes, call: StreamCall) -> None:
        """As many messages as the request says, numbered from 0."""
        for number in range(int(request)):
            call.send(str(number).encode())
        call.finish()

    def _fail_after_two(self, request: bytes, call: StreamCall) -> None:
        call.send(b"one")
        call.send(b"two")
        call.fail(StatusCode.DATA_LOSS, "no more")
        call.send(b"three")

    def _crash_stream(self, request: bytes, call: StreamCall) -> None:
        call.send(b"one")
        raise ValueError(SECRET)

    def _exchange(self, request: bytes, call: Call) -> bytes:
        """Echo, but fail at 'fail' and crash at 'crash'."""
        if request == b"fail":
            raise RpcError(StatusCode.DATA_LOSS, "no more")
        if request == b"crash":
            raise ValueError(SECRET)
        return request

    def _hold_stream(self, request: bytes, call: StreamCall) -> None:
        self.held.keep(request, call)

"""
Calls: the interface for handlers, and the transport's complete state of a stream.

A call is RECEIVING until its request is complete, then IN_HANDLER while its handler runs. If the handler
returns None, the call is KEPT and occupies a handler slot until the handler ends the call, even after the
call was CANCELLED. An ENDED call waits until the peer has read the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from sidecar.rpc.statuses import StatusCode
from sidecar.transports.fast.requests import Request
from sidecar.transports.framing import MessageReader

RECEIVING: Final = 0
IN_HANDLER: Final = 1
KEPT: Final = 2
CANCELLED: Final = 3
ENDED: Final = 4


class CallConnection(Protocol):
    """The interface of a connection for its calls."""

    def answer(self, call: FastCall, message: bytes) -> None:
        """Queue the OK answer of a unary call."""

    def answer_status(self, call: FastCall, code: StatusCode, detail: str) -> None:
        """Queue the status that ends a call."""

    def send_message(self, call: FastStreamCall, message: bytes) -> None:
        """Queue one message of a streaming call."""

    def release(self, call: FastCall) -> None:
        """Release the handler slot of a kept call."""

    def on_deadline(self, call: FastCall, now_s: float) -> None:
        """End a kept call whose deadline has passed."""

    def flush_soon(self) -> None:
        """Write everything queued at the end of this loop turn, once for all calls."""

    def on_fault(self, error: Exception) -> None:
        """End the connection, because an answer could not be queued."""


class FastCall:
    """The common part of unary and streaming calls. Implements `sidecar.rpc.calls.Call`."""

    __slots__ = (
        "connection",
        "deadline_s",
        "ended_s",  # when the periodic check first found the call ENDED; 0.0 = not yet
        "on_cancel",
        "reader",  # only for a request that is not one complete frame
        "request",
        "started_ns",
        "started_s",
        "state",
        "stream_id",
        "tick",  # of the deadline in the timer wheel; 0 = not in it
    )

    def __init__(
        self,
        connection: CallConnection,
        stream_id: int,
        request: Request,
        started_s: float,
        started_ns: int,
    ) -> None:
        """
        Start a call whose headers arrived at *started_s*, from which the deadline counts.

        *started_ns* is the same moment on the clock that measures durations.
        """
        self.connection = connection
        self.stream_id = stream_id
        self.request = request
        self.started_s = started_s
        self.started_ns = started_ns
        timeout_s = request.timeout_s
        self.deadline_s: float | None = None if timeout_s is None else started_s + timeout_s
        self.on_cancel: Callable[[], None] | None = None
        self.state = RECEIVING
        self.reader: MessageReader | None = None
        self.tick = 0
        self.ended_s = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether the answer's headers were sent and the answer is not complete."""
        return False

    @property
    def is_cancelled(self) -> bool:
        """See `Call.is_cancelled`."""
        return self.state == CANCELLED

    def metadata(self, name: str) -> str | None:
        """See `Request.metadata`."""
        return self.request.metadata(name)

    def fail(self, code: StatusCode, detail: str) -> None:
        """See `Call.fail`."""
        if self._end():
            try:
                self.connection.answer_status(self, code, detail)
                self.connection.flush_soon()
            except Exception as error:  # a store answers many calls at once: one must not stop the others
                self.connection.on_fault(error)

    def on_due(self, now_s: float) -> None:
        """End a kept call whose deadline has passed (called by the timer wheel)."""
        self.tick = 0
        try:
            self.connection.on_deadline(self, now_s)
        except Exception as error:
            self.connection.on_fault(error)

    def _end(self) -> bool:
        """Release the slot of a call that its handler ends; True = the answer must be sent."""
        state = self.state
        if state == KEPT:
            self.connection.release(self)
            return True
        if state == CANCELLED:
            self.connection.release(self)
            self.state = ENDED
            return False
        return state == IN_HANDLER


class FastUnaryCall(FastCall):
    """Implements `sidecar.rpc.calls.UnaryCall`."""

    __slots__ = ()

    def reply(self, message: bytes) -> None:
        """See `UnaryCall.reply`."""
        if self._end():
            try:
                self.connection.answer(self, message)
                self.connection.flush_soon()
            except Exception as error:
                self.connection.on_fault(error)


class FastStreamCall(FastCall):
    """Implements `sidecar.rpc.calls.StreamCall`."""

    __slots__ = ("_has_begun",)

    def __init__(
        self,
        connection: CallConnection,
        stream_id: int,
        request: Request,
        started_s: float,
        started_ns: int,
    ) -> None:
        """See `FastCall`."""
        super().__init__(connection, stream_id, request, started_s, started_ns)
        self._has_begun = False

    @property
    def has_begun(self) -> bool:
        """Whether a message was sent."""
        return self._has_begun

    def begin(self) -> None:
        """The answer's headers were sent."""
        self._has_begun = True

    def send(self, message: bytes) -> None:
        """See `StreamCall.send`."""
        if self.state in (IN_HANDLER, KEPT):
            try:
                self.connection.send_message(self, message)
                self.connection.flush_soon()
            except Exception as error:
                self.connection.on_fault(error)

    def finish(self) -> None:
        """See `StreamCall.finish`."""
        self.fail(StatusCode.OK, "")

"""
Calls as handlers see them; each is also the transport's whole state of its stream.

A call is RECEIVING until its request is complete, then IN_HANDLER while its handler runs. A handler
that returns no answer keeps the call: KEPT takes a handler slot, and the slot is free only when the
handler ends the call, also after it was CANCELLED. ENDED calls wait for the peer to take the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sidecar.rpc.statuses import StatusCode
from sidecar.transports.fast.requests import Request
from sidecar.transports.framing import MessageReader

RECEIVING = 0
IN_HANDLER = 1
KEPT = 2
CANCELLED = 3
ENDED = 4


class Answerer(Protocol):
    """What a call needs of its connection."""

    def answer(self, call: FastCall, message: bytes) -> None:
        """Queue the OK answer of a unary call."""

    def answer_status(self, call: FastCall, code: StatusCode, detail: str) -> None:
        """Queue the status that ends a call."""

    def send_message(self, call: FastStreamCall, message: bytes) -> None:
        """Queue one message of a streaming call."""

    def release(self, call: FastCall) -> None:
        """Free the handler slot of a kept call."""

    def on_deadline(self, call: FastCall, now_s: float) -> None:
        """The deadline of a kept call has passed."""

    def flush_soon(self) -> None:
        """Have what is queued written at the end of this loop turn, once for all calls."""

    def on_fault(self, error: Exception) -> None:
        """An answer could not even be queued: the connection is broken."""


class FastCall:
    """What unary and streaming calls have in common. Implements `sidecar.rpc.calls.Call`."""

    __slots__ = (
        "connection",
        "deadline_s",
        "ended_s",  # when the periodic check first saw the answer wait for the peer; 0.0 = not yet
        "on_cancel",
        "reader",  # only for a request that is not one whole frame
        "request",
        "started_s",
        "state",
        "stream_id",
        "tick",  # of the deadline in the timer wheel; 0 = not in it
    )

    def __init__(self, connection: Answerer, stream_id: int, request: Request, started_s: float) -> None:
        """A call whose headers came at *started_s*: from then on its deadline runs."""
        self.connection = connection
        self.stream_id = stream_id
        self.request = request
        self.started_s = started_s
        timeout_s = request.timeout_s
        self.deadline_s: float | None = None if timeout_s is None else started_s + timeout_s
        self.on_cancel: Callable[[], None] | None = None
        self.state = RECEIVING
        self.reader: MessageReader | None = None
        self.tick = 0
        self.ended_s = 0.0

    @property
    def has_begun(self) -> bool:
        """True once the answer's headers were sent while its end is open."""
        return False

    @property
    def is_cancelled(self) -> bool:
        """True once the answer can no longer reach the caller."""
        return self.state == CANCELLED

    def metadata(self, name: str) -> str | None:
        """See `Request.metadata`."""
        return self.request.metadata(name)

    def fail(self, code: StatusCode, detail: str) -> None:
        """End the call with a non-OK status. A second ending of the same call is ignored."""
        if self._end():
            try:
                self.connection.answer_status(self, code, detail)
                self.connection.flush_soon()
            except Exception as error:  # whoever answers late answers many: one must not stop the rest
                self.connection.on_fault(error)

    def on_due(self, now_s: float) -> None:
        """The deadline of a kept call has passed (from the timer wheel)."""
        self.tick = 0
        try:
            self.connection.on_deadline(self, now_s)
        except Exception as error:
            self.connection.on_fault(error)

    def _end(self) -> bool:
        """Free the slot of a call that its handler ends; True = the answer is still wanted."""
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
        """End the call OK with one serialised message. A second ending is ignored."""
        if self._end():
            try:
                self.connection.answer(self, message)
                self.connection.flush_soon()
            except Exception as error:
                self.connection.on_fault(error)


class FastStreamCall(FastCall):
    """Implements `sidecar.rpc.calls.StreamCall`."""

    __slots__ = ("_has_begun",)

    def __init__(self, connection: Answerer, stream_id: int, request: Request, started_s: float) -> None:
        """See `FastCall`."""
        super().__init__(connection, stream_id, request, started_s)
        self._has_begun = False

    @property
    def has_begun(self) -> bool:
        """True once a message was sent."""
        return self._has_begun

    def begin(self) -> None:
        """The answer's headers were sent."""
        self._has_begun = True

    def send(self, message: bytes) -> None:
        """Send one serialised message; dropped once the call is cancelled or ended."""
        if self.state in (IN_HANDLER, KEPT):
            try:
                self.connection.send_message(self, message)
                self.connection.flush_soon()
            except Exception as error:
                self.connection.on_fault(error)

    def finish(self) -> None:
        """End the call OK."""
        self.fail(StatusCode.OK, "")

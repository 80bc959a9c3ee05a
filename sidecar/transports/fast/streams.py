"""
The streams of one connection: dispatches requests to handlers, and encodes answers.

There is no task, no lock, no timer and no log line per call. The loop in `handle` and the functions that it
calls for a normal unary call (`_on_request`, `_on_data`, `_dispatch`, `answer`) are the hot path: they are
benchmarked and do only what such a call needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter_ns
from typing import Any, Final, Protocol, cast

from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.transports.fast import answers
from sidecar.transports.fast.answers import OK_HEADERS, OK_TRAILERS
from sidecar.transports.fast.calls import (
    CANCELLED,
    ENDED,
    IN_HANDLER,
    KEPT,
    RECEIVING,
    FastCall,
    FastStreamCall,
    FastUnaryCall,
)
from sidecar.transports.fast.core import Core
from sidecar.transports.fast.engine import (
    DATA_FRAME_BYTES,
    ConnectionStateError,
    DataReceived,
    Event,
    H2Error,
    Headers,
    Http2,
    NGH2Error,
    RequestReceived,
    StreamClosed,
    StreamProtocolError,
    StreamReset,
    TrailersReceived,
    peer_header_list_bytes_max,
)
from sidecar.transports.fast.held import STREAM_BYTES
from sidecar.transports.fast.policing import Policing
from sidecar.transports.fast.requests import Refusal, Request, read_request
from sidecar.transports.fast.unfinished import UnfinishedRequests
from sidecar.transports.framing import PREFIX_BYTES, frame_message

REQUEST_KEPT_BYTES_MAX: Final = 2_048
"""Maximum size of the last request's headers that a connection keeps, to recognize equal headers."""

_NO_REQUEST: Final = Request((), 0, None, None)
_DATA: Final = DataReceived
_REQUEST: Final = RequestReceived
_CLOSED: Final = StreamClosed
_EXPIRED: Final = "the deadline has passed"


class StreamsConnection(Protocol):
    """The interface of a connection for its streams."""

    def on_control(self, event: Event) -> None:
        """Handle an event that does not belong to a stream."""

    def flush_soon(self) -> None:
        """Write the queued output at the end of this loop turn."""

    def on_fault(self, error: Exception) -> None:
        """End the connection because of an internal error."""

    def resume_soon(self) -> None:
        """Call `Streams.resume` in a later turn; do not read until then."""

    def kill(self, reason: str, code: H2Error) -> None:
        """Send GOAWAY with *code* and close."""

    def drain_flooding_peer(self) -> None:
        """Finish running calls, refuse new streams, then close."""


class Streams:
    """
    The open streams of one connection and their calls. Implements `calls.CallConnection`.

    `now_s` is the loop's clock at the start of this turn, `header_bytes` the size of unfinished requests'
    headers at the last `check`. `seen` counts requests, `replies` OK answers of unary calls, `statuses`
    other answers, `frames` further DATA frames; `running` counts kept calls.
    """

    __slots__ = (
        "_answered_ns",
        "_backlog",
        "_connection",
        "_core",
        "_http2",
        "_is_closed",
        "_policing",
        "_replies_counted",
        "_request",
        "_resets",
        "_unfinished",
        "calls",
        "frames",
        "header_bytes",
        "last_stream_id",
        "now_s",
        "read_ns",
        "replies",
        "running",
        "seen",
        "statuses",
    )

    def __init__(self, core: Core, http2: Http2, policing: Policing, connection: StreamsConnection) -> None:
        """Start without open streams."""
        self._core = core
        self._http2 = http2
        self._policing = policing
        self._connection = connection
        self._is_closed = False
        self._answered_ns: list[int] = []
        self._backlog: deque[Event] = deque()
        self._replies_counted = 0
        self._request = _NO_REQUEST
        self._resets: list[int] = []
        self._unfinished = UnfinishedRequests(core)
        self.calls: dict[int, FastCall] = {}
        self.header_bytes = 0
        self.now_s = 0.0
        self.read_ns = 0
        self.last_stream_id = 0
        self.seen = 0
        self.replies = 0
        self.statuses = 0
        self.frames = 0
        self.running = 0

    # Events.

    @property
    def has_backlog(self) -> bool:
        """Whether events wait for a later turn."""
        return bool(self._backlog)

    def handle(self, events: Sequence[Event]) -> None:
        """
        Handle *events* in order.

        Events beyond the connection's share of this turn (`Core.take_share`) wait for the next turn, so that
        one connection does not delay the others.
        """
        if self._backlog:
            self._backlog.extend(events)
            return
        calls = self.calls
        events_left = len(events)
        if events_left > 2 * self._core.undivided_calls:  # headers and data of each
            events_left = 2 * self._core.take_share(events_left // 2)
        rest: Iterator[Any] = iter(events)  # Any: `type(event) is` is faster than isinstance
        for event in rest:
            kind = type(event)
            if kind is _DATA:
                call = calls.get(event.stream_id)
                if call is not None and call.state == RECEIVING:
                    self._on_data(call, event)
                events_left -= 1
            elif kind is _REQUEST:
                self._on_request(event)
                events_left -= 1
            elif kind is _CLOSED:
                call = calls.pop(event.stream_id, None)
                if call is None or call.state != ENDED:
                    self._on_closed_early(call, event)
            elif kind is StreamReset:
                self._on_reset(event)
            elif kind is TrailersReceived:
                self._on_trailers(event)
            else:
                self._connection.on_control(event)
            if events_left <= 0:
                self._defer(rest)
                return

    def resume(self) -> None:
        """Handle the next part of the backlog."""
        events = list(self._backlog)
        self._backlog.clear()
        self.handle(events)

    def _defer(self, rest: Iterator[Event]) -> None:
        self._backlog.extend(rest)
        if self._backlog:
            self._connection.resume_soon()

    def _on_request(self, event: RequestReceived) -> None:
        if self._is_closed:
            return
        self.seen += 1
        stream_id = self.last_stream_id = event.stream_id
        headers = event.headers
        request = self._request
        if headers != request.headers:
            # Proxies repeat headers: comparing takes a fifth of the time of parsing.
            request = self._read_request(headers)
        now_s, now_ns = self.now_s, self.read_ns
        call: FastCall
        if request.is_streaming:
            call = FastStreamCall(self, stream_id, request, now_s, now_ns)
        else:
            call = FastUnaryCall(self, stream_id, request, now_s, now_ns)
        self.calls[stream_id] = call
        if request.refusal is not None:
            self._refuse(call, request.refusal)
        elif event.end_stream:
            self._collect(call, b"", is_last=True)

    def _read_request(self, headers: Headers) -> Request:
        core = self._core
        request = self._request.follow(headers, core.limits.header_list_bytes_max) or read_request(
            headers, core.methods, core.limits
        )
        if request.octets <= REQUEST_KEPT_BYTES_MAX:
            self._request = request
        return request

    def _on_data(self, call: FastCall, event: DataReceived) -> None:
        data = event.data
        if event.end_stream and call.reader is None and len(data) >= PREFIX_BYTES:
            size = len(data) - PREFIX_BYTES
            # The flag and the upper half of the length are 0: a frame is smaller than 64 KiB.
            if (
                data[:3] == b"\0\0\0"
                and data[3] << 8 | data[4] == size
                and size <= self._core.limits.message_bytes_max
            ):
                self._dispatch(call, data[PREFIX_BYTES:])
                return
        self._collect(call, data, is_last=event.end_stream)

    def _on_trailers(self, event: TrailersReceived) -> None:
        # RFC 9113 8.1: trailers end the request. gRPC servers ignore their content.
        call = self.calls.get(event.stream_id)
        if call is not None and call.state == RECEIVING:
            self._collect(call, b"", is_last=True)

    def _on_reset(self, event: StreamReset) -> None:
        # RFC 9113 6.4: a reset with any code cancels the call (Envoy's time-outs have INTERNAL), also
        # a call that was answered in the same read: the peer cannot have the answer yet.
        call = self.calls.get(event.stream_id)
        if call is not None:
            self._cancel(call)
            self._count_early_end()

    def _on_closed_early(self, call: FastCall | None, event: StreamClosed) -> None:
        """Handle a stream that closed before its answer: ngh2 refused it, or reset a malformed request."""
        if call is not None:
            self._cancel(call)
        if event.error_code not in (H2Error.NO_ERROR, H2Error.REFUSED_STREAM) and (
            call is None or call.state == RECEIVING
        ):
            self._count_early_end()

    def _count_early_end(self) -> None:
        """Count a stream that the peer ended or made invalid before the answer."""
        if not self._policing.early_end(self.now_s):
            self._connection.drain_flooding_peer()

    def _collect(self, call: FastCall, data: bytes, *, is_last: bool) -> None:
        """Add *data* to a request that is not one complete frame."""
        if call.request.is_exchange:
            self._unfinished.answer_parts(self, cast(FastStreamCall, call), data, is_last=is_last)
            return
        message = self._unfinished.collect(self, call, data, is_last=is_last)
        if message is not None:
            self._dispatch(call, message)

    def end_exchanges(self) -> None:
        """End all exchanges, so that they do not delay a drain."""
        for call in list(self.calls.values()):
            if call.request.is_exchange and call.state == RECEIVING:
                self.answer_status(call, StatusCode.UNAVAILABLE, "this server is draining")

    def kill_flooding_peer(self) -> None:
        """Close the connection, because its peer sends tiny DATA frames."""
        self._connection.kill("flood", H2Error.ENHANCE_YOUR_CALM)

    # Handlers.

    def _dispatch(self, call: FastCall, message: bytes) -> None:
        core = self._core
        limits = core.limits
        if core.running >= limits.calls_max or self.running >= limits.calls_per_connection_max:
            self.answer_status(call, StatusCode.RESOURCE_EXHAUSTED, "too many calls are running")
            return
        deadline_s = call.deadline_s
        if deadline_s is not None and self.now_s >= deadline_s:
            self.reject(call, StatusCode.DEADLINE_EXCEEDED, _EXPIRED)
            return
        call.state = IN_HANDLER
        try:
            answer = call.request.handle(message, call)
        except RpcError as error:
            call.fail(error.code, error.detail)
        except Exception:
            core.log_fault(f"the handler of {call.request.path}")
            call.fail(StatusCode.UNKNOWN, "the handler failed")
        else:
            if call.state == IN_HANDLER:
                if answer is not None:
                    self.answer(call, answer)
                else:
                    self._keep(call)

    def _keep(self, call: FastCall) -> None:
        """Take a handler slot for a call that is answered later."""
        core = self._core
        call.state = KEPT
        self.running += 1
        core.running += 1
        core.values[core.running_slot] = core.running
        if call.deadline_s is not None:
            call.tick = core.wheel.add(call.deadline_s, call)

    def release(self, call: FastCall) -> None:
        """Release the handler slot of a kept call."""
        core = self._core
        self.running -= 1
        core.running -= 1
        core.values[core.running_slot] = core.running
        call.on_cancel = None
        if call.tick:
            core.wheel.discard(call.tick, call)
            call.tick = 0

    def on_deadline(self, call: FastCall, now_s: float) -> None:
        """Answer a kept call whose deadline has passed, and notify the handler."""
        self.now_s = now_s
        try:
            self.answer_status(call, StatusCode.DEADLINE_EXCEEDED, _EXPIRED)
        finally:
            call.state = CANCELLED  # the slot stays occupied until the handler ends the call
            self._notify(call)
        self._count_early_end()
        self.flush_soon()

    def _cancel(self, call: FastCall) -> None:
        """Cancel a call whose caller has disconnected or reset the stream."""
        if call.state == RECEIVING:
            self._unfinished.drop(call)
            call.state = ENDED
        elif call.state == KEPT:
            call.state = CANCELLED
            self._core.values[self._core.code_slots[StatusCode.CANCELLED]] += 1
            if call.tick:
                self._core.wheel.discard(call.tick, call)
                call.tick = 0
            self._notify(call)

    def _notify(self, call: FastCall) -> None:
        on_cancel = call.on_cancel
        call.on_cancel = None
        if on_cancel is not None:
            try:
                on_cancel()
            except Exception:
                self._core.log_fault(f"on_cancel of {call.request.path}")

    # Answers.

    def answer(self, call: FastCall, message: bytes) -> None:
        """Queue the OK answer of a unary call."""
        call.state = ENDED
        http2 = self._http2
        stream_id = call.stream_id
        try:
            http2.send_response(stream_id, OK_HEADERS)
            http2.send_data(stream_id, frame_message(message))
            http2.send_trailers(stream_id, OK_TRAILERS)
        except StreamProtocolError:
            return  # the stream was reset in the same read; its event follows
        self.replies += 1
        self._answered_ns.append(call.started_ns)
        if len(message) > DATA_FRAME_BYTES:
            self.frames += len(message) // DATA_FRAME_BYTES

    def answer_status(
        self, call: FastCall, code: StatusCode, detail: str, *, names_encodings: bool = False
    ) -> None:
        """Queue the status that ends a call: Trailers-Only, or trailers if the answer has begun."""
        if call.state == RECEIVING:
            self._resets.append(call.stream_id)  # PROTOCOL-HTTP2.md: answered before END_STREAM
            self._unfinished.drop(call)
        call.state = ENDED
        self.statuses += 1
        self._core.values[self._core.code_slots[code]] += 1
        try:
            if call.has_begun:
                self._http2.send_trailers(call.stream_id, answers.status_trailers(code, detail))
            else:
                headers = answers.status_headers(code, self._fit(detail), names_encodings=names_encodings)
                self._http2.send_response(call.stream_id, headers, end_stream=True)
        except StreamProtocolError:
            return  # as in `answer`

    def _fit(self, detail: str) -> str:
        # RFC 9113 6.5.2; ngh2 ignores the peer's limit. The status is more important than its text.
        bytes_max = peer_header_list_bytes_max(self._http2)
        if bytes_max is not None and bytes_max < answers.STATUS_HEADERS_BYTES_MAX:
            return ""
        return detail

    def reject(self, call: FastCall, code: StatusCode, detail: str, *, names_encodings: bool = False) -> None:
        """Answer an invalid request, and count it."""
        self.answer_status(call, code, detail, names_encodings=names_encodings)
        self._count_early_end()

    def _refuse(self, call: FastCall, refusal: Refusal) -> None:
        if refusal.http_status == 200:
            self.reject(call, refusal.code, refusal.detail)
            return
        call.state = ENDED
        if self._core.http_error_delay_s:
            when_s = self._core.loop.time() + self._core.http_error_delay_s
            self._core.loop.call_at(when_s, self._answer_http, call, refusal.http_status)
        else:
            self._answer_http(call, refusal.http_status)
        self._count_early_end()

    def _answer_http(self, call: FastCall, status: int) -> None:
        headers, body = answers.http_error(status)
        self._resets.append(call.stream_id)
        self.statuses += 1
        try:
            self._http2.send_response(call.stream_id, headers)
            self._http2.send_data(call.stream_id, body, end_stream=True)
        except NGH2Error:
            return  # the stream was reset, or the connection closed, meanwhile
        self.flush_soon()

    def send_message(self, call: FastStreamCall, message: bytes) -> None:
        """Queue one message of a streaming call; cancel the call if the peer does not read."""
        http2 = self._http2
        try:
            if not call.has_begun:
                http2.send_response(call.stream_id, OK_HEADERS)
            http2.send_data(call.stream_id, frame_message(message))
        except StreamProtocolError:
            return
        call.begin()
        self.frames += 1 + len(message) // DATA_FRAME_BYTES
        if http2.queued_body_size(call.stream_id) > self._core.limits.stream_queue_bytes_max:
            self._cancel(call)
            http2.reset_stream(call.stream_id, H2Error.CANCEL)

    def flush_soon(self) -> None:
        """See `StreamsConnection.flush_soon`."""
        self._connection.flush_soon()

    def on_fault(self, error: Exception) -> None:
        """See `StreamsConnection.on_fault`."""
        self._connection.on_fault(error)

    @property
    def has_output(self) -> bool:
        """Whether there is output of calls or of ngh2 since `take_output`."""
        return self.replies != self._replies_counted or self._http2.want_write or bool(self._resets)

    def take_output(self) -> bytes:
        """Return the bytes to write."""
        http2 = self._http2
        output = http2.data_to_send()
        if self._resets:
            output += self._reset_answered()
        if self.replies != self._replies_counted:
            core = self._core
            core.values[core.code_slots[0]] += self.replies - self._replies_counted
            self._replies_counted = self.replies
        return output

    def observe_answered(self) -> None:
        """Measure the unary calls whose answers have just been written."""
        answered_ns = self._answered_ns
        if not answered_ns:
            return
        now_ns, observe_ns = perf_counter_ns(), self._core.observe_request_ns
        first_ns = answered_ns[0]
        if answered_ns[-1] == first_ns:  # nearly always: all of them came with one read
            observe_ns(now_ns - first_ns, len(answered_ns))
        else:
            for started_ns in answered_ns:
                observe_ns(now_ns - started_ns)
        answered_ns.clear()

    def _reset_answered(self) -> bytes:
        """Reset streams that were answered before their requests ended (PROTOCOL-HTTP2.md)."""
        # After the answers: a reset would drop an answer that is still queued.
        http2, resets = self._http2, self._resets
        self._resets = []
        try:
            for stream_id in resets:
                if not http2.queued_body_size(stream_id):
                    http2.reset_stream(stream_id, H2Error.NO_ERROR)
            return http2.data_to_send()
        except ConnectionStateError:
            return b""  # the output has a GOAWAY: the connection is closed

    @property
    def open_bytes(self) -> int:
        """The memory of streams without a handler: requests in progress and unread answers."""
        return self.header_bytes + STREAM_BYTES * (len(self.calls) - self.running)

    # Time-outs and closing.

    @property
    def has_unanswered(self) -> bool:
        """Whether a call has no answer."""
        return any(call.state < CANCELLED for call in self.calls.values())

    def check(self, now_s: float) -> None:
        """End incomplete requests and unread answers after their time-outs; called every quarter second."""
        limits = self._core.limits
        self.now_s = now_s
        self.header_bytes = 0
        for call in list(self.calls.values()):
            if call.state == RECEIVING:
                self.header_bytes += call.request.octets
                if call.deadline_s is not None and now_s >= call.deadline_s:
                    self.reject(call, StatusCode.DEADLINE_EXCEEDED, _EXPIRED)
                elif now_s - call.started_s >= limits.request_timeout_s:
                    detail = f"the request was not complete within {limits.request_timeout_s:g} s"
                    self.reject(call, StatusCode.DEADLINE_EXCEEDED, detail)
            elif call.state == ENDED:
                if not call.ended_s:
                    call.ended_s = now_s
                    call.request = _NO_REQUEST  # frees the headers
                elif now_s - call.ended_s >= limits.write_timeout_s:
                    # The peer never opens its window, or only by single bytes.
                    self._http2.reset_stream(call.stream_id, H2Error.CANCEL)

    def close(self) -> None:
        """Cancel all calls, and refuse new ones."""
        self._is_closed = True
        self._backlog.clear()
        calls = list(self.calls.values())
        self.calls.clear()
        for call in calls:
            self._cancel(call)

    def detach(self, connection: StreamsConnection) -> None:
        """Replace the closed connection by *connection*; kept calls may still end."""
        self._connection = connection

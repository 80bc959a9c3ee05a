"""
Requests that are not one complete frame: their pieces and memory; and exchanges, whose messages are answered
one by one.
"""

from __future__ import annotations

from typing import Protocol, cast

from sidecar.rpc.calls import EXCHANGE_MESSAGES_MAX
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.transports.fast.calls import IN_HANDLER, RECEIVING, FastCall, FastStreamCall
from sidecar.transports.fast.core import Core
from sidecar.transports.fast.policing import has_tiny_frames
from sidecar.transports.framing import CompressedError, ExchangeReader, FramingError, MessageReader


class AnsweringStreams(Protocol):
    """The interface of a connection's streams for unfinished requests."""

    def answer_status(self, call: FastCall, code: StatusCode, detail: str) -> None:
        """Queue the status that ends a call."""

    def reject(self, call: FastCall, code: StatusCode, detail: str, *, names_encodings: bool = False) -> None:
        """Answer an invalid request, and count it."""

    def send_message(self, call: FastStreamCall, message: bytes) -> None:
        """Queue one message of a streaming call."""

    def kill_flooding_peer(self) -> None:
        """Close the connection, because its peer sends tiny DATA frames."""


class UnfinishedRequests:
    """
    The unfinished requests of one connection.

    `Core.buffered_bytes` counts the bytes of all connections. Methods get the streams as a parameter, so that
    there is no reference cycle.
    """

    __slots__ = ("_buffered_bytes", "_core")

    def __init__(self, core: Core) -> None:
        """Start without requests."""
        self._core = core
        self._buffered_bytes = 0

    def collect(
        self, streams: AnsweringStreams, call: FastCall, data: bytes, *, is_last: bool
    ) -> bytes | None:
        """Add *data* to the request of *call*; return its message if it is complete."""
        core = self._core
        reader = call.reader
        if reader is None:
            reader = call.reader = MessageReader(
                core.limits.message_bytes_max, is_encoded=call.request.is_encoded
            )
        try:
            self._add(len(data))
            reader.feed(data)
            message = reader.finish() if is_last else None
        except FramingError as error:
            _reject_framing(streams, call, error)
            return None
        if message is not None:
            self.drop(call)
        else:
            self._check(streams, call, reader)
        return message

    def answer_parts(
        self, streams: AnsweringStreams, call: FastStreamCall, data: bytes, *, is_last: bool
    ) -> None:
        """
        Answer each complete message of an exchange; the end of the request ends the call.

        Until then the limits of unfinished requests apply to the call.
        """
        if call.reader is None:
            call.reader = ExchangeReader(
                self._core.limits.message_bytes_max, is_encoded=call.request.is_encoded
            )
        reader = cast(ExchangeReader, call.reader)
        try:
            held_bytes = reader.received
            messages = reader.split(data)
            self._add(reader.received - held_bytes)
            if is_last:
                reader.finish()
        except FramingError as error:
            _reject_framing(streams, call, error)
            return
        if reader.messages > EXCHANGE_MESSAGES_MAX:
            detail = f"the call has more than {EXCHANGE_MESSAGES_MAX} messages"
            streams.reject(call, StatusCode.RESOURCE_EXHAUSTED, detail)
            return
        for message in messages:
            self._answer_part(streams, call, message)
            if call.state != RECEIVING:
                return
        if is_last:
            call.state = IN_HANDLER
            call.finish()
        else:
            self._check(streams, call, reader)

    def _answer_part(self, streams: AnsweringStreams, call: FastStreamCall, message: bytes) -> None:
        try:
            answer = call.request.handle(message, call)
        except RpcError as error:
            streams.answer_status(call, error.code, error.detail)
        except Exception:
            self._core.log_fault(f"the handler of {call.request.path}")
            streams.answer_status(call, StatusCode.UNKNOWN, "the handler failed")
        else:
            streams.send_message(call, cast(bytes, answer))

    def _check(self, streams: AnsweringStreams, call: FastCall, reader: MessageReader) -> None:
        """Reject the request if it and others hold too much memory, or have too many frames."""
        limits = self._core.limits
        if (
            self._buffered_bytes > limits.buffered_bytes_per_connection_max
            or self._core.buffered_bytes > limits.buffered_bytes_max
        ):
            streams.reject(call, StatusCode.RESOURCE_EXHAUSTED, "too many unfinished requests")
        elif has_tiny_frames(reader.pieces, reader.received):
            streams.kill_flooding_peer()

    def _add(self, size: int) -> None:
        self._buffered_bytes += size
        self._core.buffered_bytes += size

    def drop(self, call: FastCall) -> None:
        """Free the pieces of the request of *call*."""
        reader = call.reader
        if reader is not None:
            self._add(-reader.received)
            call.reader = None


def _reject_framing(streams: AnsweringStreams, call: FastCall, error: FramingError) -> None:
    streams.reject(call, error.code, error.detail, names_encodings=type(error) is CompressedError)

"""
The interface of a gRPC call for handlers, and the table in which transports look methods up.

A handler is a plain function. It either returns the response bytes, or it returns None, keeps the call
and answers later with `reply` or `fail`, from a callback on the same event loop. No task is created per
call. Both transports run the same handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from sidecar.rpc.statuses import StatusCode


class Call(Protocol):
    """
    One running call, unary or server-streaming.

    `deadline_s` is on the event loop's clock (`loop.time()`); None = the caller set no deadline.
    A handler that keeps the call may set `on_cancel`. The transport calls it at most once, when the
    caller disconnects or the deadline passes. The handler must *still* end the call with `reply`,
    `finish` or `fail` then (the bytes are dropped): only that frees the call's slot.
    """

    deadline_s: float | None
    on_cancel: Callable[[], None] | None

    @property
    def is_cancelled(self) -> bool:
        """Whether the answer can no longer reach the caller."""

    def metadata(self, name: str) -> str | None:
        """Return request metadata *name* (lower case); repeats joined by ','; None = absent."""

    def fail(self, code: StatusCode, detail: str) -> None:
        """End the call with a non-OK status; ignored if the call has ended."""


class UnaryCall(Call, Protocol):
    """A call that is answered with exactly one message."""

    def reply(self, message: bytes) -> None:
        """End the call OK with one serialized message; ignored if the call has ended."""


class StreamCall(Call, Protocol):
    """A call that is answered with any number of messages."""

    def send(self, message: bytes) -> None:
        """Send one serialized message; dropped if the call is canceled or has ended."""

    def finish(self) -> None:
        """End the call OK."""


UnaryHandler = Callable[[bytes, UnaryCall], bytes | None]
"""Takes the serialized request; returns the serialized response, or None to answer later."""

StreamHandler = Callable[[bytes, StreamCall], None]
"""Takes the serialized request and keeps the call until it finishes or fails it."""

ExchangeHandler = Callable[[bytes, Call], bytes]
"""Takes one serialized message of the request; returns the serialized answer to it."""

EXCHANGE_MESSAGES_MAX: Final = 256
"""Maximum messages of one exchange; a client that reads all descriptors needs fewer."""


@dataclass(frozen=True, slots=True)
class UnaryMethod:
    """A unary method: its full path, such as '/grpc.health.v1.Health/Check', and its handler."""

    path: str
    handle: UnaryHandler


@dataclass(frozen=True, slots=True)
class StreamMethod:
    """A server-streaming method: its full path and its handler."""

    path: str
    handle: StreamHandler


@dataclass(frozen=True, slots=True)
class ExchangeMethod:
    """
    A bidirectional streaming method with one immediate answer per message: its full path and handler.

    The handler must not keep the call. The transport ends a call after EXCHANGE_MESSAGES_MAX messages, and
    after `TransportLimits.request_timeout_s`.
    """

    path: str
    handle: ExchangeHandler


Method = UnaryMethod | StreamMethod | ExchangeMethod


def method_table(methods: Iterable[Method]) -> Mapping[str, Method]:
    """
    Index *methods* by path.

    Raises:
        ValueError: two methods share a path.
    """
    table: dict[str, Method] = {}
    for method in methods:
        if method.path in table:
            raise ValueError(f"method {method.path} has two handlers")
        table[method.path] = method
    return table

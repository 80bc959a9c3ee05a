"""
What a handler sees of a call, and the table by which a transport finds it.

A handler is a plain function. It answers at once by returning the response bytes, or it keeps the
call, returns None and answers later with `reply` or `fail`, from a callback on the same event loop.
There is no task per call. Both transports run the same handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sidecar.rpc.statuses import StatusCode


class Call(Protocol):
    """
    One running call, unary or server-streaming.

    `deadline_s` is on the event loop's clock (`loop.time()`); None = the caller set no deadline.
    `on_cancel` may be set by a handler that keeps the call: it is called at most once, when the
    caller goes away or the deadline passes. After it the handler must *still* end the call with
    `reply`, `finish` or `fail` (the bytes are then dropped), because only that frees its slot.
    """

    deadline_s: float | None
    on_cancel: Callable[[], None] | None

    @property
    def is_cancelled(self) -> bool:
        """True once the answer can no longer reach the caller."""

    def metadata(self, name: str) -> str | None:
        """The value of request metadata *name* (lower case); repeats joined by ','; None = absent."""

    def fail(self, code: StatusCode, detail: str) -> None:
        """End the call with a non-OK status. A second ending of the same call is ignored."""


class UnaryCall(Call, Protocol):
    """A call that is answered with exactly one message."""

    def reply(self, message: bytes) -> None:
        """End the call OK with one serialised message. A second ending is ignored."""


class StreamCall(Call, Protocol):
    """A call that is answered with any number of messages."""

    def send(self, message: bytes) -> None:
        """Send one serialised message; dropped once the call is cancelled or ended."""

    def finish(self) -> None:
        """End the call OK."""


UnaryHandler = Callable[[bytes, UnaryCall], bytes | None]
"""Takes the serialised request; returns the serialised response, or None to answer later."""

StreamHandler = Callable[[bytes, StreamCall], None]
"""Takes the serialised request and keeps the call until it finishes or fails it."""


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


Method = UnaryMethod | StreamMethod


def method_table(methods: Iterable[Method]) -> Mapping[str, Method]:
    """
    Index *methods* by path.

    Raises:
        ValueError: two methods share a path.
    """
    table: dict[str, Method] = {}
    for method in methods:
        if method.path in table:
            raise ValueError(f"two handlers for {method.path}")
        table[method.path] = method
    return table

"""
One connection to a Redis server: commands out, replies in, in order; no task, no lock, no retry.

A sender passes a receiver for each reply. The Redis protocol has no request ids: the n-th reply answers the
n-th command, so a lost reply makes the connection unusable.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import hiredis

from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.resp import pack
from sidecar.stores.redis.scripts import Script
from sidecar.stores.redis.urls import Address

READ_BYTES = 65_536
"""Maximum number of bytes that one `Link.read_now` reads."""

_UNREADABLE = -1  # only the transport can read a TLS connection


class Receiver(Protocol):
    """Receives one reply or the loss of the connection: exactly one call."""

    def replied(self, reply: Any) -> None:
        """Receive the reply: int, bytes, None, a list of them, or an `ErrorReply`."""

    def lost(self) -> None:
        """Handle the loss of the connection: the server may or may not have executed the command."""


class LinkLostError(ConnectionError):
    """The connection ended before the reply came."""


class Link(asyncio.Protocol):
    """
    The protocol of one connection, plain, TLS or Unix.

    `lost` is done when the connection has ended. `on_replies_read` is called after the replies of one read
    have been delivered, so that queued commands can be sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, reply_bytes_max: int) -> None:
        """Wait for `connection_made`."""
        self.lost: asyncio.Future[None] = loop.create_future()
        self.on_replies_read: Callable[[], None] | None = None
        self._loop = loop
        self._reader = hiredis.Reader(protocolError=hiredis.ProtocolError, replyError=ErrorReply)
        self._receivers: deque[Receiver] = deque()
        self._transport: asyncio.Transport | None = None
        self._socket = _UNREADABLE
        self._unread_bytes = 0
        self.is_aborted = False
        """Whether this side gave the connection up with `abort`."""
        self.error: Exception | None = None
        """The error that ended the connection, if the transport knows it."""
        self._reply_bytes_max = reply_bytes_max
        self.address = Address()
        """The server's address, set by the connector."""
        self.run_id = ""
        """The run id of the server's process, read in the handshake; '' = unknown."""

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def waiting(self) -> int:
        """Number of replies that have not arrived yet."""
        return len(self._receivers)

    def send(self, commands: bytes, receivers: Iterable[Receiver]) -> None:
        """
        Write *commands*, with one receiver for each.

        Raises:
            LinkLostError: the connection is closed; no receiver is called.
        """
        if self._transport is None:
            raise LinkLostError("the connection to Redis is closed")
        self._receivers.extend(receivers)
        self._transport.write(commands)

    def request(self, *words: str | bytes | int) -> asyncio.Future[Any]:
        """
        Send one command and return a future of its reply; not for decisions.

        The future fails with `ErrorReply` or `LinkLostError`.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            self.send(pack(*words), (_FutureReceiver(future),))
        except LinkLostError as error:
            future.set_exception(error)
        return future

    def abort(self) -> None:
        """Give the connection up: close it at once and refuse queued takes; may be called again."""
        if self._transport is not None:
            self.is_aborted = True
            self._transport.abort()

    def disconnect(self) -> None:
        """Close the connection at once; queued takes wait for the next connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport: commands can be sent from now on."""
        socket = transport.get_extra_info("socket")
        if socket is not None and transport.get_extra_info("ssl_object") is None:
            self._socket = socket.fileno()
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class only has the same methods

    def read_now(self) -> bool:
        """
        Deliver replies that arrived since the event loop's last poll; True = there were some.

        Always False over TLS, where only the transport reads. A closed connection is left to the transport,
        which detects it as well.
        """
        if self._socket == _UNREADABLE or self._transport is None or self._transport.is_closing():
            return False
        try:
            data = os.read(self._socket, READ_BYTES)
        except OSError:
            return False  # nothing to read, or the connection is broken
        if data:
            self.data_received(data)
        return bool(data)

    def data_received(self, data: bytes) -> None:
        """Deliver the complete replies."""
        reader = self._reader
        receivers = self._receivers
        try:
            reader.feed(data)
            reply = reader.gets()
            self._unread_bytes = len(data) + (self._unread_bytes if reply is False else 0)
            while reply is not False and receivers:
                receivers.popleft().replied(reply)
                reply = reader.gets()
        except hiredis.ProtocolError:
            self.abort()
            return
        # A reply without a command, or one that is too long: the two sides are out of step.
        if reply is not False or self._unread_bytes > self._reply_bytes_max:
            self.abort()
        elif self.on_replies_read is not None:
            self.on_replies_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """Call `lost` of every receiver that still waits."""
        self._transport, self.error = None, exc
        while self._receivers:
            self._receivers.popleft().lost()
        if not self.lost.done():
            self.lost.set_result(None)


class PushLink(Link):
    """A link for subscriptions: messages of channels go to `on_message`."""

    on_message: Callable[[bytes], None] | None = None

    def data_received(self, data: bytes) -> None:
        """Deliver messages and replies."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except hiredis.ProtocolError:
            self.abort()

    def _take(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[:1] == [b"message"]:
            if self.on_message is not None:
                self.on_message(reply[2])
        elif self._receivers:
            self._receivers.popleft().replied(reply)
        else:
            self.abort()


class _FutureReceiver:
    """Puts the reply into a future."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def replied(self, reply: Any) -> None:
        if self._future.done():
            return
        if isinstance(reply, ErrorReply):
            self._future.set_exception(reply)
        else:
            self._future.set_result(reply)

    def lost(self) -> None:
        if not self._future.done():
            self._future.set_exception(LinkLostError("the connection to Redis ended before the reply"))


class IgnoredReply:
    """A receiver that drops its reply."""

    __slots__ = ()

    def replied(self, reply: Any) -> None:
        """Drop the reply."""

    def lost(self) -> None:
        """Do nothing."""


IGNORED = IgnoredReply()


def load_again(link: Link, scripts: Sequence[Script]) -> None:
    """Load *scripts* again after a NOSCRIPT error; calls of them may be sent right after."""
    if link.is_open:  # else the next command fails and reports the loss
        link.send(b"".join(script.load for script in scripts), [IGNORED] * len(scripts))

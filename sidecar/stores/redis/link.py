"""
One connection to a Redis server: bytes out, replies in, in order; no task, no lock, no retry.

Whoever sends leaves a receiver for each reply. The Redis protocol has no request ids: the n-th reply
answers the n-th command, so a reply that is lost makes the connection worthless.
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
"""The most that one `Link.read_now` reads."""

_UNREADABLE = -1  # behind TLS only the transport can read


class Receiver(Protocol):
    """Gets one reply, or learns that none will come; exactly one of the two, once."""

    def replied(self, reply: Any) -> None:
        """The reply: int, bytes, None, a list of them, or an `ErrorReply`."""

    def lost(self) -> None:
        """The connection is gone. Whether the command was carried out is not known."""


class LinkLostError(ConnectionError):
    """The connection ended before the reply came."""


class Link(asyncio.Protocol):
    """
    The protocol of one connection, plain, TLS or Unix.

    `lost` is done when the connection has ended. `on_replies_read` is called after the replies of one read
    have been handed out: the moment to send what has gathered.
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
        self.address = Address()
        """The server's, set by whoever connects."""
        self.is_given_up = False
        """We ended the connection; the server did not."""
        self.error: Exception | None = None
        """What ended the connection, where the transport knows."""
        self._reply_bytes_max = reply_bytes_max
        self.address = Address()
        """The server's, set by whoever connects."""
        self.run_id = ""
        """Of the server's process, as it told in the handshake; '' = it was not asked."""

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def waiting(self) -> int:
        """Replies that are still to come."""
        return len(self._receivers)

    def send(self, commands: bytes, receivers: Iterable[Receiver]) -> None:
        """
        Write *commands*, with one receiver for each.

        Raises:
            LinkLostError: the connection is closed; no receiver is told.
        """
        if self._transport is None:
            raise LinkLostError("the connection to Redis is closed")
        self._receivers.extend(receivers)
        self._transport.write(commands)

    def request(self, *words: str | bytes | int) -> asyncio.Future[Any]:
        """
        Send one command for a caller who can wait; not for decisions.

        The future fails with `ErrorReply` or `LinkLostError`.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            self.send(pack(*words), (_FutureReceiver(future),))
        except LinkLostError as error:
            future.set_exception(error)
        return future

    def abort(self) -> None:
        """End the connection at once; may be called again."""
        if self._transport is not None:
            self.is_given_up = True
            self._transport.abort()

    def leave(self) -> None:
        """End the connection: the server is no longer the one to ask; what waits goes to the next one."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to send."""
        socket = transport.get_extra_info("socket")
        if socket is not None and transport.get_extra_info("ssl_object") is None:
            self._socket = socket.fileno()
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods alone

    def read_now(self) -> bool:
        """
        Hand out replies that have come since the event loop looked; True = there was something to read.

        Over TLS there never is: those replies come in the loop's time. An end of the connection is left to
        the transport, which finds it there, too.
        """
        if self._socket == _UNREADABLE or self._transport is None or self._transport.is_closing():
            return False
        try:
            data = os.read(self._socket, READ_BYTES)
        except OSError:
            return False  # nothing has come, or the connection is broken
        if data:
            self.data_received(data)
        return bool(data)

    def data_received(self, data: bytes) -> None:
        """Hand out the replies that are complete."""
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
        # A reply that nobody asked for: the two sides no longer agree on anything.
        if reply is not False or self._unread_bytes > self._reply_bytes_max:
            self.abort()
        elif self.on_replies_read is not None:
            self.on_replies_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        self._transport, self.error = None, exc
        while self._receivers:
            self._receivers.popleft().lost()
        if not self.lost.done():
            self.lost.set_result(None)


class PushLink(Link):
    """A link on which the server also speaks unasked: messages of channels go to `on_message`."""

    on_message: Callable[[bytes], None] | None = None

    def data_received(self, data: bytes) -> None:
        """Hand out messages and replies."""
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
    """A receiver for replies that tell nothing."""

    __slots__ = ()

    def replied(self, reply: Any) -> None:
        """Drop it."""

    def lost(self) -> None:
        """Nobody to tell."""


IGNORED = IgnoredReply()


def load_again(link: Link, scripts: Sequence[Script]) -> None:
    """Make *scripts* known to a server that lost them (NOSCRIPT); calls of them may be sent at once."""
    if link.is_open:  # else what is sent next tells
        link.send(b"".join(script.load for script in scripts), [IGNORED] * len(scripts))

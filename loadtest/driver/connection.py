"""What both clients share: a socket that does not block, and the calls in flight on it."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from socket import socket
from typing import NamedTuple

READ_BYTES = 262_144
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Call(NamedTuple):
    """
    One call: when it was due and when it was sent (CLOCK_MONOTONIC), and the number of its message.

    `tag` belongs to the load, see `loops.Load`; `target` is that of its connection.
    """

    due_ns: int
    sent_ns: int
    number: int
    tag: int
    target: int = 0


Ended = tuple[Call, bytes | None]
"""A call and its answer: a gRPC message without its prefix, or an HTTP head and body; None = a gRPC error."""


class Connection:
    """
    One connection to a server.

    `is_draining`: the server takes no further calls on it. `is_closed`: it is unusable; `lost` are the calls
    that got no answer. `refused` are calls that the server certainly did not handle, to be sent again.
    """

    def __init__(self, connected: socket, target: int = 0) -> None:
        """Use the socket *connected* to the server with the number *target*."""
        self.socket = connected
        self.target = target
        self.is_draining = False
        self.is_closed = False
        self.lost: list[Call] = []
        self.refused: list[Call] = []
        self.unsent = b""
        self._calls: dict[int, Call] = {}

    @property
    def in_flight(self) -> int:
        """The number of unanswered calls."""
        return len(self._calls)

    @property
    def oldest_ns(self) -> int:
        """When the oldest unanswered call was sent; 0 = there is none."""
        return next(iter(self._calls.values())).sent_ns if self._calls else 0

    @property
    def room(self) -> int:
        """How many calls may be sent now."""
        raise NotImplementedError

    def send(self, calls: Sequence[Call]) -> None:
        """Send *calls*, at most `room`."""
        raise NotImplementedError

    def read(self) -> list[Ended]:
        """Read what has arrived; return the answered calls."""
        raise NotImplementedError

    def flush(self, data: bytes = b"") -> None:
        """Send *data* after what could not be sent before."""
        data = self.unsent + data if self.unsent else data
        try:
            sent = self.socket.send(data) if data else 0
        except _WOULD_BLOCK:
            sent = 0
        except OSError:
            self.close()
            return
        self.unsent = data[sent:] if sent < len(data) else b""

    def close(self) -> None:
        """Close the connection; all calls in flight are lost."""
        if not self.is_closed:
            self.is_closed = self.is_draining = True
            self.unsent = b""
            self.socket.close()
            self.lost += self._calls.values()
            self._calls.clear()

    def _received(self) -> bytes:
        """Return the bytes that have arrived; `is_closed` is set if the peer has closed the connection."""
        pieces = []
        try:
            while True:
                data = self.socket.recv(READ_BYTES)
                pieces.append(data)
                if not data or not isinstance(self.socket, ssl.SSLSocket) or not self.socket.pending():
                    break
        except _WOULD_BLOCK:
            pass
        except OSError:
            pieces.append(b"")
        self._is_eof = bool(pieces) and not pieces[-1]
        return b"".join(pieces)

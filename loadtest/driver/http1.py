"""The HTTP/1.1 client: one request in flight on a kept-alive connection, as proxies ask (RFC 9112)."""

from __future__ import annotations

from collections.abc import Sequence
from socket import socket

from loadtest.driver.connection import Call, Connection, Ended

HEAD_BYTES_MAX = 65_536
_HEAD_END = b"\r\n\r\n"
_LENGTH, _CHUNKED, _CLOSE = b"\ncontent-length:", b"\ntransfer-encoding: chunked", b"\nconnection: close"


class Http1Connection(Connection):
    """Sends prepared requests, one at a time."""

    def __init__(self, connected: socket, requests: Sequence[bytes], target: int = 0) -> None:
        """Send requests out of *requests*, each complete."""
        super().__init__(connected, target)
        self._requests = requests
        self._rest = b""
        self._is_eof = False

    @property
    def room(self) -> int:
        """1 if no request is in flight, else 0."""
        return 0 if self._calls or self.is_draining or self.unsent else 1

    def send(self, calls: Sequence[Call]) -> None:
        """Send the only one of *calls*."""
        [call] = calls
        self._calls[0] = call
        self.flush(self._requests[call.number])

    def read(self) -> list[Ended]:
        """Read what has arrived; return the answered call, with its head in lower case and its body."""
        self._rest += self._received()
        ended: list[Ended] = []
        size = answer_bytes(self._rest, self._is_head_request()) if self._rest else 0
        if size and self._calls:
            head_end = self._rest.index(_HEAD_END)
            head = self._rest[:head_end].lower()
            ended.append((self._calls.pop(0), head + self._rest[head_end:size]))
            self._rest = self._rest[size:]
            if _CLOSE in head:
                self.close()
        if self._is_eof or (len(self._rest) > HEAD_BYTES_MAX and not self._calls):
            self.close()
        return ended

    def _is_head_request(self) -> bool:
        return bool(self._calls) and self._requests[self._calls[0].number].startswith(b"HEAD ")


def answer_bytes(data: bytes, is_head_request: bool) -> int:
    """
    Return the length of the answer at the start of *data*; 0 = it is not complete yet.

    >>> answer_bytes(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nokHTTP/1.1", False)
    40
    """
    end = data.find(_HEAD_END)
    if end < 0:
        return 0
    body = end + len(_HEAD_END)
    head = data[:end].lower()
    if is_head_request or head[9:12] in (b"204", b"304"):
        return body
    if _CHUNKED in head:
        return len(data) if data.endswith(b"\r\n0\r\n\r\n") else 0  # one request, so nothing follows
    at = head.find(_LENGTH)
    length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return body + length if len(data) >= body + length else 0

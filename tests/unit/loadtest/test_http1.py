"""The HTTP/1.1 client: one request at a time, and answers with every kind of end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.driver.connection import Call
from loadtest.driver.http1 import Http1Connection

CALL = Call(1, 1, 0, 0)


@contextmanager
def asked(method: str = "GET") -> Iterator[tuple[Http1Connection, socket.socket]]:
    """A connection with one request in flight, and the server's socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        client = Http1Connection(ours, [f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode()])
        assert client.room == 1
        client.send([CALL])
        assert client.room == 0
        yield client, theirs


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ],
)
def test_http1__an_answer_ends_where_it_says(method: str, data: bytes) -> None:
    """Byte by byte, the answer is complete with its last byte, and the connection takes the next request."""
    with asked(method) as (client, theirs):
        for at in range(len(data) - 1):
            theirs.sendall(data[at : at + 1])
            assert client.read() == []
        theirs.sendall(data[-1:])
        [(call, message)] = client.read()
        assert (call, message[9:12], client.room) == (CALL, data[9:12], 1)


def test_http1__connection_close_ends_the_connection_after_the_answer() -> None:
    """The answer counts; the next request needs a new connection."""
    with asked() as (client, theirs):
        theirs.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert len(client.read()) == 1
        assert (client.is_closed, client.lost) == (True, [])


def test_http1__a_connection_that_ends_early_loses_its_request() -> None:
    """Half an answer is none."""
    with asked() as (client, theirs):
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        assert client.read() == []
        theirs.close()
        assert client.read() == []
        assert (client.is_closed, client.lost) == (True, [CALL])

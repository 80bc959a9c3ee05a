"""One connection: replies to their receivers in order, and an end that everybody learns of."""

from __future__ import annotations

import asyncio
from socket import socket, socketpair
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.stores.redis.link import Link, LinkLostError
from sidecar.stores.redis.replies import ErrorReply
from tests.waiting import run


class StoreTransport:
    """Keeps what is written; ends when aborted."""

    def __init__(self, link: Link) -> None:
        """Of *link*."""
        self.link = link
        self.written = b""
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def get_extra_info(self, name: str) -> None:
        """There is no socket behind it."""

    def abort(self) -> None:
        """End, and say so once."""
        if not self.is_aborted:
            self.is_aborted = True
            self.link.connection_lost(None)


class Keeping:
    """A receiver that keeps what it gets."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.got: list[Any] = []

    def replied(self, reply: Any) -> None:
        """Keep it."""
        self.got.append(reply)

    def lost(self) -> None:
        """Keep that."""
        self.got.append("lost")


def open_link(reply_bytes_max: int = 1_000) -> tuple[Link, StoreTransport]:
    """A link on a transport that the test holds."""
    link = Link(asyncio.get_running_loop(), reply_bytes_max)
    transport = StoreTransport(link)
    link.connection_made(cast(asyncio.Transport, transport))
    return link, transport


@given(st.lists(st.integers(1, 12), max_size=40))
def test_link__replies_find_their_receivers_however_they_are_cut(cuts: list[int]) -> None:
    """Under every chunking of the bytes each receiver gets its reply, in order, an error as one."""

    async def scenario() -> None:
        link, _ = open_link()
        receivers = [Keeping() for _ in range(4)]
        link.send(b"", receivers)
        data = b":1\r\n*2\r\n:2\r\n$3\r\nabc\r\n-NOSCRIPT no such\r\n$-1\r\n"
        for size in cuts:
            link.data_received(data[:size])
            data = data[size:]
        link.data_received(data)
        assert receivers[0].got == [1]
        assert receivers[1].got == [[2, b"abc"]]
        assert isinstance(receivers[2].got[0], ErrorReply) and receivers[2].got[0].code == "NOSCRIPT"
        assert receivers[3].got == [None]

    run(scenario())


async def test_link__a_read_ends_with_one_turn() -> None:
    """After all replies of a read are handed out the owner may send, once."""
    link, _ = open_link()
    receiver = Keeping()
    link.send(b"", [receiver] * 3)
    turns: list[int] = []
    link.on_replies_read = lambda: turns.append(len(receiver.got))
    link.data_received(b":1\r\n:2\r\n:3\r\n")
    assert turns == [3]


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n:2\r\n", b"*1\r\n$2000\r\n" + b"x" * 1_500, b"$-5\r\n"],
    ids=["not-redis", "unasked", "endless", "bad-length"],
)
async def test_link__nonsense_ends_the_connection(data: bytes) -> None:
    """Bytes that are no reply, a reply that nobody asked for, one that does not end: nothing is believed."""
    link, transport = open_link()
    receiver = Keeping()
    link.send(b"", [receiver])
    link.data_received(data)
    assert transport.is_aborted
    assert link.lost.done()
    assert receiver.got[-1] in ("lost", 1)


async def test_link__the_end_is_reported_to_everybody_once() -> None:
    """Receivers, futures and `lost`; afterwards nothing can be sent."""
    link, transport = open_link()
    receivers = [Keeping(), Keeping()]
    link.send(b"", receivers)
    request = link.request("PING")
    link.abort()
    link.abort()
    assert [receiver.got for receiver in receivers] == [["lost"], ["lost"]]
    with pytest.raises(LinkLostError):
        await request
    await link.lost
    assert not link.is_open
    with pytest.raises(LinkLostError):
        link.send(b"", receivers)
    with pytest.raises(LinkLostError):
        await link.request("PING")
    assert transport.written == b"*1\r\n$4\r\nPING\r\n"


async def test_link__a_request_gets_its_reply_or_its_error() -> None:
    """For callers who can wait; one who gave up is no problem."""
    link, _ = open_link()
    good, bad, given_up = link.request("GET", "a"), link.request("GET", "b"), link.request("GET", "c")
    given_up.cancel()
    link.data_received(b"$1\r\nx\r\n-ERR no\r\n:3\r\n")
    assert await good == b"x"
    with pytest.raises(ErrorReply, match="ERR no"):
        await bad


async def joined_link() -> tuple[Link, socket]:
    """A link over a real socket, and the socket's other end."""
    ours, theirs = socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(lambda: Link(loop, 1_000), sock=ours)
    return link, theirs


async def test_link__what_has_come_is_read_without_the_loop() -> None:
    """`read_now` hands replies out within the turn in which they came; without any it does nothing."""
    link, server = await joined_link()
    with server:
        keeping = Keeping()
        link.send(b"PING\r\n", (keeping,))
        assert server.recv(100) == b"PING\r\n", "commands leave within the turn, too"
        assert not link.read_now()
        server.send(b"+PONG\r\n")
        assert link.read_now()
        assert keeping.got == [b"PONG"]
        assert not link.read_now()
        link.abort()
        assert not link.read_now()
        await link.lost


async def test_link__a_reply_may_be_read_in_part_here_and_there() -> None:
    """The rest of a reply that `read_now` met in its middle comes by the loop, and the other way round."""
    link, server = await joined_link()
    with server:
        first = link.request("GET", "a")
        second = link.request("GET", "b")
        server.send(b"$3\r\no")
        assert link.read_now()
        server.send(b"ne\r\n$3\r\nt")
        assert await first == b"one"
        server.send(b"wo\r\n")
        assert link.read_now()
        assert second.result() == b"two"
        link.abort()
        await link.lost


async def test_link__the_end_is_left_to_the_transport() -> None:
    """`read_now` meets the end of the connection: whoever waits still learns of it, once."""
    link, server = await joined_link()
    keeping = Keeping()
    link.send(b"PING\r\n", (keeping,))
    server.close()
    assert not link.read_now()
    await link.lost
    assert keeping.got == ["lost"]
    assert not link.read_now()

"""The slot map of a Cluster whose nodes do not agree: which of them is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from sidecar.stores.redis.connect import Connector, HandshakeError
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.replies import ErrorReply
from sidecar.stores.redis.slots import NODES_ASKED_MAX, find_slots, read_redirect
from sidecar.stores.redis.urls import Address, parse_store_url
from tests.waiting import run

FORMER, SUCCESSOR = 7_001, 7_002
LOOPBACK = "127.0.0.1"


@asynccontextmanager
async def node(state: str, epoch: int, primary: int) -> AsyncIterator[Address]:
    """A node that says that *primary* serves every slot."""
    info = f"cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n"
    slots = f"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n{LOOPBACK}\r\n:{primary}\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.strip() == b"SETNAME":
                writer.write(b"+OK\r\n")
            elif line.strip() == b"SLOTS":
                writer.write(slots.encode())
            elif line.strip() == b"INFO":
                writer.write(f"${len(info)}\r\n{info}\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield Address(LOOPBACK, server.sockets[0].getsockname()[1])
    finally:
        server.close()


def believed(*views: tuple[str, int, int]) -> int:
    """The port of the primary, as worked out from what nodes say in this order."""

    async def scenario() -> int:
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(node(*view)) for view in views]
            connector = Connector(
                parse_store_url("redis+cluster://a"), KeySpace(), StoreLimits(discovery_timeout_s=10)
            )
            [(first, last, primary)] = await find_slots(connector, nodes)
            assert (first, last) == (0, 16_383)
            return primary.port

    return run(scenario())


def test_slots__a_node_that_is_cut_off_is_not_believed() -> None:
    """It may be asked first and answer for ever: its epoch is older, or it sees the Cluster as down."""
    assert believed(("ok", 5, FORMER), ("ok", 6, SUCCESSOR), ("ok", 6, SUCCESSOR)) == SUCCESSOR
    assert believed(("fail", 5, FORMER), ("ok", 5, SUCCESSOR)) == SUCCESSOR
    assert believed(("fail", 7, FORMER), ("ok", 6, SUCCESSOR)) == SUCCESSOR


def test_slots__of_equals_most_are_believed() -> None:
    """Two nodes of three."""
    assert believed(("ok", 5, FORMER), ("ok", 5, SUCCESSOR), ("ok", 5, SUCCESSOR)) == SUCCESSOR


def test_slots__without_a_better_view_the_only_one_counts() -> None:
    """A Cluster that is down is still one: its nodes may come back."""
    assert believed(("fail", 5, FORMER)) == FORMER


def test_slots__no_more_nodes_are_asked_than_the_bound() -> None:
    """The last one alone knows better, and is not asked."""
    views = [("ok", 5, FORMER)] * NODES_ASKED_MAX
    assert believed(*views, ("ok", 6, SUCCESSOR)) == FORMER


@pytest.mark.parametrize(
    ("text", "leads_to"),
    [
        ("MOVED 42 10.0.0.1:7000", Address("10.0.0.1", 7_000)),
        ("ASK 42 :7000", Address("asked", 7_000)),
        ("MOVED 42 fe80::1:7000", Address("fe80::1", 7_000)),
        ("ASK 42 node-1.example:7000", Address("node-1.example", 7_000)),
    ],
)
def test_redirect__is_read(text: str, leads_to: Address) -> None:
    """A host that is left out means the node that was asked."""
    assert read_redirect(ErrorReply(text), Address("asked", 1)) == leads_to


def test_redirect__to_nowhere_is_refused() -> None:
    """TRYAGAIN names no node."""
    with pytest.raises(HandshakeError, match="redirects without an address"):
        read_redirect(ErrorReply("MOVED 42"), Address("asked", 1))

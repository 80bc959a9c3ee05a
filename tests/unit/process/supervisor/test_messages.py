"""Reports and orders arrive as they were sent, and unconfirmed orders end in time."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sidecar.domain.changes import Position
from sidecar.process.readiness import Component
from sidecar.process.supervisor.messages import (
    ORDER_BYTES_MAX,
    ORDERS_MAX,
    PACKET_BYTES_MAX,
    PROBLEM_CHARS_MAX,
    Confirmation,
    Order,
    PendingOrders,
    Report,
    read_confirmation,
    read_order,
    read_report,
)
from sidecar.sources.file_faults import FAULTS_SHOWN_MAX, FileFault, FileFaultsError
from sidecar.transports.listeners import parse_endpoint
from sidecar.transports.server import ListenError

SERVED = {
    "grpc": (parse_endpoint("127.0.0.1:9191"), parse_endpoint("[::1]:1"), parse_endpoint("unix:@a")),
    "another": (parse_endpoint("127.0.0.1:9194"),),
}


@pytest.mark.parametrize(
    ("report", "is_ready", "unready"),
    [
        (Report(), False, ""),
        (Report(SERVED), True, ""),
        (Report({}, {"grpc": Component(True, "serving")}), True, ""),
        (Report(None, {"grpc": Component(True, "serving")}), False, ""),
        (Report(SERVED, {"a": Component(False, "off"), "b": Component(True, "on")}), False, "a: off"),
        (Report(SERVED, {"a": Component(False, "x"), "b": Component(False, "y")}), False, "a: x, b: y"),
    ],
)
def test_report__comes_back_as_it_was(report: Report, is_ready: bool, unready: str) -> None:
    """Ready = it serves, and so is every component; the others are named."""
    got = read_report(report.packed())
    assert got == report
    assert (got.is_ready, got.unready) == (is_ready, unready)


@pytest.mark.parametrize(
    ("components", "state"),
    [
        ({"registry": Component(True, "loaded"), "store": Component(True, "connected")}, "ready"),
        (
            {"registry": Component(True, "loaded, but not followed: x")},
            "ready; registry: loaded, but not followed: x",
        ),
        ({"store": Component(True, "x cannot be used")}, "ready; store: x cannot be used"),
        ({"registry": Component(False, "loading"), "store": Component(True, "x")}, "registry: loading"),
    ],
)
def test_report__tells_what_is_wrong_with_a_ready_worker(
    components: dict[str, Component], state: str
) -> None:
    """Without its registry or store a worker decides by its last snapshot; /readyz names it."""
    assert Report(SERVED, components).state == state


def test_report__carries_mistakes_with_their_places() -> None:
    """The supervisor reports them as its own."""
    faults = [FileFault("a.yaml", 3, "x.y", "is wrong"), FileFault("b.yaml", None, "", "is gone")]
    got = read_report(Report(fault=FileFaultsError(faults, 7)).packed()).fault
    assert isinstance(got, FileFaultsError)
    assert (got.faults, got.total) == (tuple(faults), 7)


def test_report__carries_an_address_that_cannot_be_bound() -> None:
    """It keeps its kind, and with it the exit code."""
    got = read_report(Report(fault=ListenError("cannot listen on x: y")).packed()).fault
    assert isinstance(got, ListenError)
    assert str(got) == "cannot listen on x: y"


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\x01", "\udc80"])
def test_report__the_worst_list_of_mistakes_fits_a_packet(character: str) -> None:
    """As many as are shown, each as long as can be, sent without waiting through a fresh socket."""
    long = character * 10_000
    report = Report(fault=FileFaultsError([FileFault(long, 1, long, long)] * FAULTS_SHOWN_MAX, 99))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        theirs.send(report.packed())
        got = read_report(ours.recv(PACKET_BYTES_MAX)).fault
    assert isinstance(got, FileFaultsError)
    assert len(got.faults[-1].problem) == PROBLEM_CHARS_MAX


AT = Position(3, 70)
PATIENCE_S = 60.0
WORDS = [b"", b"{", b"null", b"[1]", b"\xff", b'{"order": 1}', b'{"order": "1", "position": [0]}']


def sent_orders(orders: PendingOrders, count: int = 1) -> list[asyncio.Task[bool]]:
    """*count* orders, each waited for."""
    return [asyncio.create_task(orders.send(AT, PATIENCE_S)) for _ in range(count)]


@pytest.mark.parametrize("is_in_force", [True, False])
async def test_orders__the_worker_s_word_counts(is_in_force: bool) -> None:
    """Each order gets its own confirmation, in whichever order they come; strange ones are nothing."""
    sent: list[bytes] = []
    orders = PendingOrders(sent.append)
    first, second = sent_orders(orders, 2)
    await asyncio.sleep(0)
    numbers = [order.number for order in map(read_order, sent) if order is not None]
    orders.confirm(Confirmation(99, True))
    orders.confirm(Confirmation(numbers[1], is_in_force))
    orders.confirm(Confirmation(numbers[1], not is_in_force))
    assert await second is is_in_force
    assert not first.done()
    orders.confirm(Confirmation(numbers[0], not is_in_force))
    assert await first is not is_in_force


async def test_orders__a_worker_that_is_gone_holds_nothing_up() -> None:
    """Its end wakes all that wait for it, also after its socket broke, and those that come later."""

    def broken(packet: bytes) -> None:
        raise BrokenPipeError

    orders = PendingOrders(broken)
    (waiting,) = sent_orders(orders)
    await asyncio.sleep(0)
    assert not waiting.done()
    orders.close()
    assert await waiting
    assert await orders.send(AT, 0.0)


async def test_orders__are_not_waited_for_without_end() -> None:
    """A worker that does not confirm, or does not read, is not in force; nothing is left of the order."""

    def full(packet: bytes) -> None:
        raise BlockingIOError

    silent = PendingOrders(lambda packet: None)
    assert not await silent.send(AT, 0.001)
    assert not await PendingOrders(full).send(AT, PATIENCE_S)
    waiting = sent_orders(silent, ORDERS_MAX)
    await asyncio.sleep(0)
    assert not await silent.send(AT, PATIENCE_S)
    silent.close()
    assert all(await asyncio.gather(*waiting))


@pytest.mark.parametrize("packet", [*WORDS, Report().packed()])
def test_packets__that_are_something_else(packet: bytes) -> None:
    """Neither end takes a report or nonsense for an order or a confirmation."""
    assert read_order(packet) is None
    assert read_confirmation(packet) is None


def test_packets__fit() -> None:
    """The largest order there can be fits the buffer that it is read into."""
    order = Order(2**63, Position(2**31, 2**63))
    packet = order.packed()
    assert len(packet) < ORDER_BYTES_MAX
    assert read_order(packet) == order

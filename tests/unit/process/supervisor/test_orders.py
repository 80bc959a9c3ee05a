"""Orders to a worker: when a change counts as in force, and what bounds the wait for it."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.domain.changes import Position
from sidecar.process.supervisor.messages import (
    ORDER_BYTES_MAX,
    ORDERS_MAX,
    Confirmation,
    Order,
    PendingOrders,
    Report,
    read_confirmation,
    read_order,
)

AT = Position(3, 70)
PATIENCE_S = 30.0
WORDS = [b"", b"{", b"null", b"[1]", b"\xff", b'{"order": 1}', b'{"order": "1", "position": [0]}']


def sent_orders(orders: PendingOrders, count: int = 1) -> list[asyncio.Task[bool]]:
    """*count* orders, each waited for."""
    return [asyncio.create_task(orders.send(AT, PATIENCE_S)) for _ in range(count)]


@pytest.mark.parametrize("is_in_force", [True, False])
def test_orders__the_worker_s_word_counts(is_in_force: bool) -> None:
    """Each order gets its own confirmation, in whichever order they come; strange ones are nothing."""

    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_orders__a_worker_that_is_gone_holds_nothing_up() -> None:
    """Whoever waits for it goes on when it ends, also if its socket broke before; so does who comes later."""

    async def scenario() -> None:
        def broken(packet: bytes) -> None:
            raise BrokenPipeError

        orders = PendingOrders(broken)
        (waiting,) = sent_orders(orders)
        await asyncio.sleep(0)
        assert not waiting.done()
        orders.close()
        assert await waiting
        assert await orders.send(AT, 0.0)

    asyncio.run(scenario())


def test_orders__are_not_waited_for_without_end() -> None:
    """A worker that does not confirm, or does not read, is not in force; nothing is left of the order."""

    async def scenario() -> None:
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

    asyncio.run(scenario())


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

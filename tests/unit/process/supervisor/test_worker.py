"""A worker's side: what it reports, when, and how it learns that its supervisor ended."""

from __future__ import annotations

import io
import json
import logging
import socket

import pytest

from sidecar.domain.changes import Position
from sidecar.observe.logs import JsonFormatter, log_event
from sidecar.process.readiness import Component
from sidecar.process.supervisor.messages import (
    PACKET_BYTES_MAX,
    Confirmation,
    Order,
    Report,
    read_confirmation,
    read_report,
)
from sidecar.process.supervisor.worker import Link, WorkerField


@pytest.fixture
def ends() -> tuple[socket.socket, Link]:
    """The supervisor's end, and the worker's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, Link(theirs.detach())


def numbered(number: int) -> Report:
    """A report that differs from others."""
    return Report({}, {"grpc": Component(True, str(number))})


def heard(ours: socket.socket) -> list[Report]:
    """Everything that has arrived."""
    reports = []
    while True:
        try:
            packet = ours.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return reports
        if not packet:
            return reports
        reports.append(read_report(packet))


def test_link__tells_reports_one_by_one(ends: tuple[socket.socket, Link]) -> None:
    """Each is there at once, whole."""
    ours, link = ends
    with ours, link.socket:
        for number in range(3):
            link.send(numbered(number))
        assert heard(ours) == [numbered(0), numbered(1), numbered(2)]


def test_link__a_supervisor_that_does_not_read_holds_nothing_up(ends: tuple[socket.socket, Link]) -> None:
    """What does not fit waits for the next beat, and the newest is what counts."""
    ours, link = ends
    with ours, link.socket:
        for number in range(10_000):
            link.send(numbered(number))
        before = heard(ours)
        assert before[-1] != numbered(9_999)
        link.flush()
        assert heard(ours) == [numbered(9_999)]
        link.flush()
        assert heard(ours) == []


def test_link__the_end_of_the_supervisor_is_seen(ends: tuple[socket.socket, Link]) -> None:
    """The kernel closes its end with it; telling goes on without harm."""
    ours, link = ends
    with link.socket:
        assert (list(link.receive()), link.is_closed) == ([], False)
        ours.close()
        assert (list(link.receive()), link.is_closed) == ([], True)
        link.send(numbered(1))
        link.confirm(Confirmation(1, is_in_force=True))


def test_link__brings_orders_whatever_is_between_them(ends: tuple[socket.socket, Link]) -> None:
    """Orders come in their order, and a packet that holds none harms nobody; confirmations go back."""
    ours, link = ends
    orders = [Order(number, Position(number % 2, 7)) for number in range(3)]
    with ours, link.socket:
        for order in orders:
            ours.send(b"{")
            ours.send(order.packed())
        assert (list(link.receive()), link.is_closed) == (orders, False)
        link.confirm(Confirmation(2, is_in_force=True))
        assert read_confirmation(ours.recv(PACKET_BYTES_MAX)) == Confirmation(2, is_in_force=True)


def test_field__every_line_names_its_worker() -> None:
    """Lines with fields of their own and lines without."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(WorkerField(5))
    logger = logging.getLogger("test.worker_field")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        log_event(logger, logging.WARNING, "one", reason="because")
        logger.warning("two")
    finally:
        logger.removeHandler(handler)
    one, two = map(json.loads, stream.getvalue().splitlines())
    assert (one["worker"], one["reason"], two["worker"], two["message"]) == (5, "because", 5, "two")

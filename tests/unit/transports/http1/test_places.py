"""Who gets a place when there are too many: connections, requests, memory, log lines."""

from __future__ import annotations

import logging

import pytest

from sidecar.transports.http1.core import LOG_INTERVAL_S
from sidecar.transports.http1.limits import FILES_SHARE, HttpLimits
from sidecar.transports.http1.messages import Response
from tests.unit.transports.http1.rig import GET, HttpRig, KeptExchanges

_ANSWER = Response(200, "text/plain", b"")


def test_connections__the_oldest_idle_one_makes_room() -> None:
    """Silent, half-sent or between requests; a running request keeps its place."""
    handler = KeptExchanges()
    rig = HttpRig(handler, HttpLimits(connections_max=4, connections_per_source_max=4))
    running = rig.connect("192.0.2.1")
    running.say(GET)
    half, silent, served = (rig.connect(f"192.0.2.{number}") for number in (2, 3, 4))
    half.say(b"GET / HTTP")
    served.say(GET)
    handler.exchanges[1].respond(_ANSWER)
    rig.settle()
    for number, victim in enumerate((half, silent, served)):
        assert rig.connect(f"198.51.100.{number}").is_admitted
        assert victim.transport.is_aborted
    assert not running.transport.is_aborted
    assert rig.closed_for == {"evicted": 3}


def test_connections__without_an_idle_one_a_new_one_is_refused() -> None:
    """Requests that run are not broken off for it."""
    handler = KeptExchanges()
    rig = HttpRig(handler, HttpLimits(connections_max=2, connections_per_source_max=2))
    clients = [rig.connect(), rig.connect("192.0.2.2")]
    for client in clients:
        client.say(GET)
    assert not rig.connect("192.0.2.3").is_admitted
    assert rig.closed_for == {"connection_limit": 1}
    handler.answer()
    assert rig.connect("192.0.2.3").is_admitted


def test_connections__a_source_makes_room_for_itself() -> None:
    """At its own bound it loses its own oldest; others lose none. One /64 is one source."""
    rig = HttpRig(limits=HttpLimits(connections_per_source_max=2))
    other = rig.connect("192.0.2.1")
    mine = [rig.connect(f"2001:db8::{number}") for number in range(4)]
    assert [client.transport.is_aborted for client in mine] == [True, True, False, False]
    assert not other.transport.is_aborted
    local = [rig.connect("") for _ in range(4)]
    assert not any(client.transport.is_aborted for client in local)


def test_connections__are_bounded_by_the_files_that_the_process_may_open() -> None:
    """A listener never takes more than its part of them."""
    limits = HttpLimits()
    assert limits.connections_within(1_024) == 1_024 // FILES_SHARE
    assert limits.connections_within(1_000_000) == limits.connections_max
    assert limits.connections_within(10) == 8


def test_requests__of_strangers_wait_for_a_place() -> None:
    """In turn by source, until one ends; nothing is refused for it."""
    handler = KeptExchanges()
    rig = HttpRig(handler, HttpLimits(requests_max=2))
    crowd = [rig.connect("192.0.2.1") for _ in range(6)]
    for client in crowd:
        client.say(GET)
    late = rig.connect("192.0.2.2")
    late.say(GET.replace(b"page", b"late"))
    assert len(handler.exchanges) == 2
    paths = []
    for _ in range(7):
        paths.append(handler.exchanges[0].request.path)
        handler.answer()
        rig.settle()
    assert paths.index(b"/late") == 3
    assert [client.statuses for client in (*crowd, late)] == [[200]] * 7


def test_requests__a_trusted_one_gives_its_place_to_another() -> None:
    """So that long work of those who may do it keeps nobody out, and no stranger keeps them out."""
    handler = KeptExchanges()
    rig = HttpRig(handler, HttpLimits(requests_max=1))
    clients = [rig.connect() for _ in range(5)]
    for client in clients:
        client.say(GET)
        handler.exchanges[-1].trust()
        handler.exchanges[-1].trust()
        rig.settle()
    assert len(handler.exchanges) == 5
    while handler.exchanges:
        handler.answer()
    assert rig.core.requests == 0


def test_requests__that_wait_too_long_are_told() -> None:
    """503, and nothing was done."""
    limits = HttpLimits(requests_max=1)
    handler = KeptExchanges()
    rig = HttpRig(handler, limits)
    first, second = rig.connect(), rig.connect()
    first.say(GET)
    second.say(GET)
    rig.loop.advance(limits.wait_timeout_s + 0.1)
    assert second.statuses == [503]
    handler.answer()
    rig.settle()
    assert (first.statuses, handler.exchanges) == ([200], [])


def test_requests__a_waiting_one_whose_client_goes_leaves_nothing_behind() -> None:
    """However often it comes again."""
    handler = KeptExchanges()
    rig = HttpRig(handler, HttpLimits(requests_max=1))
    rig.connect().say(GET)
    for _ in range(100):
        client = rig.connect()
        client.say(GET)
        client.connection.connection_lost(None)
    assert not rig.core.waiting and len(rig.core.connections) == 1


def test_memory__answers_that_are_not_taken_are_bounded() -> None:
    """Over all connections: the one that began first is cut off."""
    limits = HttpLimits(unsent_bytes_max=100_000)
    handler = KeptExchanges()
    rig = HttpRig(handler, limits)
    clients = [rig.connect(f"192.0.2.{number}") for number in range(10)]
    for client in clients:
        client.transport.is_peer_reading = False
        client.say(GET)
        handler.answer(b"x" * 20_000)
        assert rig.core.unsent_bytes <= limits.unsent_bytes_max
    assert rig.closed_for == {"memory_limit": 6}
    assert [client.transport.is_aborted for client in clients] == [True] * 6 + [False] * 4


def test_memory__nothing_is_kept_of_what_is_too_long() -> None:
    """Endless header lines, an endless value, an endless request line: a head and a read at most."""
    limits = HttpLimits()
    for begin, endless, status in (
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: ", b"a", 431),
        (b"GET /", b"a", 414),
        (b"X", b"\x00", 414),
    ):
        client = HttpRig().connect()
        client.say(begin)
        for _ in range(100):
            client.say(endless * 1_000)
            assert client.buffered_bytes <= limits.head_bytes_max + 8_192
        assert (client.statuses, client.is_closed) == ([status], True)


def test_log__many_refused_requests_get_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A minute; the next line says how many there were. All are counted."""
    rig = HttpRig()

    def refuse(times: int) -> None:
        for _ in range(times):
            rig.connect().say(b"nonsense\r\n\r\n")

    with caplog.at_level(logging.WARNING):
        refuse(50)
        assert len(caplog.records) == 1
        rig.loop.advance(LOG_INTERVAL_S + 0.1)
        refuse(1)
    fields = [record.event_fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [each["count"] for each in fields] == [1, 50]
    assert rig.metrics.value("sidecar_http_requests_refused_total", "400") == 51


def test_drain__idle_connections_close_and_running_requests_end() -> None:
    """Their answers say that the connection closes."""
    handler = KeptExchanges()
    rig = HttpRig(handler)
    silent, running = rig.connect(), rig.connect()
    running.say(GET)
    rig.core.is_draining = True
    for connection in tuple(rig.core.connections):
        connection.drain()
    assert silent.is_closed and not running.is_closed
    handler.answer()
    assert (running.statuses, running.is_closed) == ([200], True)
    assert b"connection: close" in running.transport.output

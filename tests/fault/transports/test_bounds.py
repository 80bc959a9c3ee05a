"""Bounds on calls and connections: the one past the bound is refused, and room that is freed is used."""

from __future__ import annotations

import gc
import weakref

import pytest

from sidecar.transports.fast.connection import Connection
from sidecar.transports.server import TransportLimits
from tests.unit.transports.rig import SETTINGS, Rig, frame, reset


def test_slots__of_a_connection() -> None:
    """The call past the bound gets RESOURCE_EXHAUSTED; when one ends, the next runs."""
    rig = Rig(TransportLimits(calls_per_connection_max=3))
    for _ in range(3):
        rig.request("/t/Keep")
    refused = rig.request("/t/Keep")
    assert refused.is_trailers_only
    assert (refused.status, len(rig.kept.calls)) == (8, 3)
    rig.kept.calls.pop().reply(b"")
    assert rig.request("/t/Echo").status == 0
    rig.request("/t/Keep")
    assert (rig.core.running, len(rig.kept.calls)) == (3, 3)


def test_slots__of_the_process() -> None:
    """Connections share them; an idle connection is refused when others have taken all."""
    rig = Rig(TransportLimits(calls_max=4, calls_per_connection_max=3))
    other, third = Rig(core=rig.core), Rig(core=rig.core)
    for each in (rig, rig, rig, other):
        each.request("/t/Keep")
    assert third.request("/t/Echo").status == 8
    rig.hang_up()
    assert third.request("/t/Echo").status == 8  # slots come back with the handlers, not with the peer
    rig.kept.reply_all()
    assert third.request("/t/Echo").status == 0


def test_slots__are_held_until_the_handler_ends() -> None:
    """Cancelling does not free a slot: otherwise a peer could run any number of handlers."""
    rig = Rig(TransportLimits(calls_per_connection_max=2))
    for _ in range(2):
        stream_id, call = rig.call_bytes("/t/Keep")
        rig.say(call + reset(stream_id))
    assert rig.kept.cancelled == 2
    assert rig.request().status == 8
    rig.kept.reply_all()
    assert rig.request().status == 0


def test_slots__refusing_is_no_offence_of_the_peer() -> None:
    """Overload is ours: refused calls do not count towards ending the connection."""
    rig = Rig(TransportLimits(calls_per_connection_max=1, resets_burst=5, resets_per_s=1))
    rig.request("/t/Keep")
    assert {rig.request().status for _ in range(100)} == {8}
    assert not rig.goaways


@pytest.mark.parametrize("path", ["/t/Keep", "/t/Watch"])
def test_slots__stream_ids_do_not_limit_them(path: str) -> None:
    """A thousand calls run at once on one connection, as Envoy opens them."""
    rig = Rig()
    for _ in range(1_000):
        rig.request(path)
    assert rig.core.running == 1_000
    for call in (*rig.kept.calls, *rig.watched.calls):
        call.reply(b"") if path == "/t/Keep" else call.finish()
    rig.loop.settle()
    assert rig.core.running == 0
    assert rig.ended(0) == 1_000


def test_streams__past_the_advertised_number_are_a_protocol_error() -> None:
    """A client that has acknowledged our SETTINGS and goes past them is ended by ngh2."""
    rig = Rig(TransportLimits(streams_max=5))
    for _ in range(6):
        rig.request("/t/Keep")
    assert rig.goaway_codes == [1]
    assert rig.kept.cancelled == 5


def test_streams__before_the_ack_they_are_refused() -> None:
    """A client's first flight may be too large: refused unprocessed, to be tried again."""
    rig = Rig(TransportLimits(streams_max=5), starts=False)
    rig.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
    for _ in range(6):
        rig.request("/t/Keep")
    assert rig.stream(11).reset == 7  # REFUSED_STREAM
    assert not rig.goaways
    assert len(rig.kept.calls) == 5


def test_connections__have_a_total() -> None:
    """The place of a closed connection is free again."""
    rig = Rig(TransportLimits(connections_max=2))
    assert rig.core.admit("")
    assert not rig.core.admit("")
    rig.hang_up()
    assert rig.core.admit("")
    assert rig.metrics.value("sidecar_connections_open") == 2


def test_connections__one_peer_cannot_take_all_places() -> None:
    """By address, over TCP; others still get in, and counts of peers that left are forgotten."""
    core = Rig(TransportLimits(connections_per_peer_max=2)).core
    assert [core.admit("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert core.admit("192.0.2.2")
    core.release("192.0.2.1", "peer")
    assert core.admit("192.0.2.1")
    for peer in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        core.release(peer, "peer")
    assert core.peers == {}


def test_connections__leave_nothing_behind() -> None:
    """A closed connection is garbage, with all its streams, whatever it was doing."""
    rig = Rig()
    for _ in range(20):
        other = Rig(core=rig.core)
        other.request()
        other.request("/t/Refuse")
        stream_id = other.stream_id()
        other.say(other.headers(stream_id) + other.data(stream_id, b"\0\0", end=False))
        other.hang_up()
    closed = weakref.ref(other.connection)
    del other
    gc.collect()
    assert closed() is None
    assert sum(isinstance(each, Connection) for each in gc.get_objects()) <= 2
    assert rig.core.connections == {rig.connection}
    assert len(rig.core.wheel) == 1


def test_metadata__of_a_kept_call_is_all_that_is_kept_of_its_request() -> None:
    """A kept call holds its headers once, shared with equal ones, and no bytes of its message."""
    rig = Rig()
    for _ in range(10):
        rig.request("/t/Keep", b"x" * 10_000)
    assert len({id(call.request) for call in rig.kept.calls}) == 1
    assert rig.core.buffered_bytes == 0

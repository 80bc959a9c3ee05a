"""How connections start, live and end: handshakes, pings, GOAWAY, ages and idle times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.transports.server import TransportLimits
from tests.waiting import eventually

from .differences import allowed
from .served import Served, Servers
from .wire import AMPLE_S, GOAWAY, PREFACE, Wire, frame, settings


def end_of(wire: Wire) -> str:
    """How the server ended the connection: the name of its last GOAWAY's error, or 'closed'."""
    wire.read_to_end()
    return wire.ending


def test_start__server_speaks_first(served: Served) -> None:
    """The server's SETTINGS come before the client has said a word (RFC 9113 3.4)."""
    with Wire(served.tcp) as wire:
        wire.read_until(lambda: wire.settings)
        assert wire.settings[0][3] >= 1_000  # MAX_CONCURRENT_STREAMS: Envoy starts with up to 1,024


def test_start__envoys_first_flight(served: Served) -> None:
    """A thousand calls sent before our SETTINGS were seen are all served, as Envoy's cold start needs."""
    with Wire(served.tcp) as wire:
        wire.acknowledges_settings = False
        wire.send(PREFACE + settings((2, 0), (3, 1_024), (4, 16 << 20)))
        wire.credit(0, 24 << 20)
        for number in range(1_000):
            wire.request(2 * number + 1, b"x")
        wire.acknowledges_settings = True
        assert {wire.outcome(2 * number + 1) for number in range(1_000)} == {"served"}


@pytest.mark.parametrize(
    "said",
    [b"", PREFACE[:10], PREFACE, PREFACE + settings()[:5]],
    ids=["nothing", "half a preface", "no settings", "half of settings"],
)
def test_start__bounded(servers: Servers, said: bytes) -> None:
    """A client that does not finish its preface and SETTINGS in time is closed."""
    served = servers.start(TransportLimits(handshake_timeout_s=0.2))
    with Wire(served.tcp) as wire:
        wire.send(said)
        wire.read_to_end()
        assert wire.is_closed


def test_start__settings_must_be_acknowledged(servers: Servers) -> None:
    """A client that never acknowledges our SETTINGS is closed with SETTINGS_TIMEOUT (RFC 9113 6.5.3)."""
    served = servers.start(TransportLimits(handshake_timeout_s=AMPLE_S))
    with Wire(served.tcp) as wire:
        wire.acknowledges_settings = False
        wire.send(PREFACE + settings())
        assert end_of(wire) in allowed(served.transport, "settings_unacknowledged")


def test_ping__same_bytes_come_back(served: Served) -> None:
    """PING is acknowledged with its own eight bytes, also between calls."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.ping(b"12345678")
        wire.request(1)
        assert wire.outcome(1) == "served"
        wire.ping(b"abcdefgh")
        assert wire.ping_acks == [b"12345678", b"abcdefgh"]


def test_ping__too_many(servers: Servers) -> None:
    """Pings that come faster than allowed, with nothing in between, end in too_many_pings (A8)."""
    served = servers.start(TransportLimits(ping_interval_min_s=60.0))
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold")
        for _ in range(10):
            wire.send(frame(6, 0, 0, bytes(8)))
        assert end_of(wire) == "goaway ENHANCE_YOUR_CALM"
        assert [goaway.additional_data for goaway in wire.goaways if goaway.error_code] == [b"too_many_pings"]


def test_ping__allowed_between_calls(servers: Servers) -> None:
    """Pings that measure bandwidth, one after each answer, are no offence however fast (A8)."""
    served = servers.start(TransportLimits(ping_interval_min_s=60.0))
    with Wire(served.tcp) as wire:
        wire.start()
        for number in range(50):
            wire.request(2 * number + 1)
            assert wire.outcome(2 * number + 1) == "served"
            wire.ping()
        assert wire.goaways == []


def test_ping__slow_ones_are_allowed(servers: Servers) -> None:
    """Keepalive pings at the allowed pace are answered for ever, with and without a call."""
    served = servers.start(TransportLimits(ping_interval_min_s=0.0))
    with Wire(served.tcp) as wire:
        wire.start()
        for _ in range(50):
            wire.ping()
        wire.request(1)
        assert wire.outcome(1) == "served"


def test_keepalive__silent_peer_is_closed(servers: Servers) -> None:
    """A peer that does not answer our PING in time is gone: the connection ends, its calls are cancelled."""
    served = servers.start(TransportLimits(keepalive_interval_s=0.1, keepalive_timeout_s=AMPLE_S))
    with Wire(served.tcp) as wire:
        wire.acknowledges_pings = False
        wire.start()
        wire.request(1, method="Hold")
        wire.read_to_end()
        assert wire.pings
        served.probe.held.wait_cancelled(1)


def test_keepalive__living_peer_stays(servers: Servers) -> None:
    """A peer that answers our PINGs keeps its connection, though it has nothing else to say."""
    served = servers.start(TransportLimits(keepalive_interval_s=0.05, keepalive_timeout_s=5.0))
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold")
        wire.read_until(lambda: len(wire.pings) >= 4)
        wire.request(3)
        assert wire.outcome(3) == "served"


def test_idle__connection_is_closed_politely(servers: Servers) -> None:
    """A connection without a call for `idle_timeout_s` gets GOAWAY(NO_ERROR) and is closed."""
    served = servers.start(TransportLimits(idle_timeout_s=AMPLE_S))
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1)
        assert wire.outcome(1) == "served"
        assert end_of(wire) in allowed(served.transport, "idle_end")


def test_idle__a_running_call_is_not_idle(servers: Servers) -> None:
    """A call that takes longer than the idle time is answered; only then the time starts."""
    served = servers.start(TransportLimits(idle_timeout_s=AMPLE_S, keepalive_interval_s=AMPLE_S / 2))
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold")
        served.probe.held.wait(1)
        wire.read_until(lambda: len(wire.pings) >= 3)  # one and a half times the idle time
        served.probe.held.reply(0, b"done")
        assert wire.outcome(1) == "served"
        assert end_of(wire) in allowed(served.transport, "idle_end")


def test_goaway__from_the_client(served: Served) -> None:
    """A client that says GOAWAY still gets the answers to its open calls; then the connection ends."""
    before = len(served.probe.held.calls)
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold")
        served.probe.held.wait(before + 1)
        wire.send(frame(GOAWAY, 0, 0, bytes(8)))
        wire.ping()
        served.probe.held.reply(before, b"as promised")
        assert wire.outcome(1) == "served"
        if "left open" in allowed(served.transport, "goaway_from_client"):
            wire.ping()
        else:
            wire.read_to_end()


def test_stream_ids__run_out_politely(served: Served) -> None:
    """Long before its stream ids run out a client is told to open another connection (RFC 9113 5.1.1)."""
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(0x7000_0001)
        assert wire.outcome(0x7000_0001) == "served"
        if "goaway NO_ERROR" in allowed(served.transport, "stream_ids_used_up"):
            wire.acknowledges_pings = False  # the second GOAWAY, which closes, waits for it
            wire.read_until(lambda: wire.goaways)
            assert wire.goaways[0].error_code == 0
        wire.request(0x7FFF_FFFF)
        assert wire.outcome(0x7FFF_FFFF) == "served"


def test_connections__bounded(servers: Servers) -> None:
    """Past `connections_max` a new connection is closed; once one ends, the next is served."""
    served = servers.start(replace(TransportLimits(), connections_max=2))
    with Wire(served.tcp) as first, Wire(served.tcp) as second:
        first.start()
        second.start()
        with Wire(served.tcp) as third:
            third.read_to_end()
        first.request(1)
        assert first.outcome(1) == "served"
        second.request(1)
        assert second.outcome(1) == "served"


def test_connections__handlers_bounded(servers: Servers) -> None:
    """One connection cannot run more than `calls_per_connection_max` handlers; another is not hindered."""
    served = servers.start(TransportLimits(calls_per_connection_max=2))
    with Wire(served.tcp) as greedy, Wire(served.tcp) as modest:
        greedy.start()
        for stream_id in (1, 3):
            greedy.request(stream_id, method="Hold")
        served.probe.held.wait(2)
        greedy.request(5)
        assert greedy.outcome(5) in ("status 8", "rst REFUSED_STREAM")
        modest.start()
        modest.request(1)
        assert modest.outcome(1) == "served"
        served.probe.held.reply(0, b"")
        assert greedy.outcome(1) == "served"
        greedy.request(7)
        assert greedy.outcome(7) == "served"
    assert served.probe.requests == 2


def test_connections__counted(servers: Servers) -> None:
    """Connections are counted when they come, while they stay and when they go, by why."""
    served = servers.start()
    if "counted" not in allowed(served.transport, "connection_metrics"):
        return
    with Wire(served.tcp) as first, Wire(served.unix) as second:
        first.start()
        second.start()
        assert served.metrics.value("sidecar_connections_open") == 2
    eventually(lambda: served.metrics.value("sidecar_connections_open") == 0, what="both have gone")
    assert served.metrics.value("sidecar_connections_accepted_total") == 2
    assert served.metrics.value("sidecar_connections_closed_total", "peer") == 2

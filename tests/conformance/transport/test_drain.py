"""Giving way: drains, takeovers and connection ages under load, without a failed call."""

from __future__ import annotations

import os
import socket
import stat
from concurrent.futures import Future
from pathlib import Path

import grpc
import pytest

from sidecar.services.health import HealthService
from sidecar.transports.server import Endpoint, ListenError, TransportLimits
from tests.waiting import PATIENCE_S, eventually

from .client_load import ClientLoad
from .differences import allowed
from .probe import path
from .relay import Relay
from .served import Served, Servers, channel
from .wire import AMPLE_S, Wire

ROUNDS = 4
"""How often a server gives way to the next in the tests of takeovers."""

PARALLEL = 32
"""Calls in flight meanwhile."""


def draining(served: Served, timeout_s: float = 5.0) -> Future[bool]:
    """Start to drain and go on."""
    served.is_drained = True
    return served.loop.start(served.server.drain(timeout_s))


def test_drain__idle_server(servers: Servers) -> None:
    """A server without connections drains at once, and again without complaint."""
    served = servers.start()
    assert served.drain()
    assert served.drain()


def test_drain__nobody_can_connect_afterwards(servers: Servers) -> None:
    """After a drain the port is closed and the path of the Unix socket is gone."""
    served = servers.start()
    assert served.drain()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((served.tcp.host, served.tcp.port), PATIENCE_S)
    assert not Path(served.unix.path).exists()


def test_drain__running_calls_end_in_peace(servers: Servers) -> None:
    """Calls that run when the drain begins are answered; then it ends, and nothing was cut off."""
    served = servers.start()
    with channel(served.tcp) as client, channel(served.unix) as other:
        futures = [
            each.unary_unary(path("Hold")).future(b"", timeout=PATIENCE_S)
            for each in (client, other)
            for _ in range(8)
        ]
        served.probe.held.wait(16)
        drain = draining(served)
        eventually(lambda: not _accepts(served.tcp), what="the port is closed to new connections")
        assert not drain.done()
        for index in range(16):
            served.probe.held.reply(index, b"late but well")
        assert [future.result(PATIENCE_S) for future in futures] == [b"late but well"] * 16
    assert drain.result(PATIENCE_S)


def _accepts(endpoint: Endpoint) -> bool:
    try:
        socket.create_connection((endpoint.host, endpoint.port), PATIENCE_S).close()
    except OSError:
        return False
    return True


def test_drain__two_goaways(servers: Servers) -> None:
    """The first GOAWAY excludes no stream and comes with a PING; the second names the last stream served."""
    served = servers.start()
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold")
        served.probe.held.wait(1)
        wire.acknowledges_pings = False
        drain = draining(served)
        wire.read_until(lambda: wire.goaways and wire.pings)
        assert (wire.goaways[0].error_code, wire.goaways[0].last_stream_id) == (0, 2**31 - 1)
        wire.acknowledge_pings()
        wire.read_until(lambda: len(wire.goaways) == 2)
        assert (wire.goaways[1].error_code, wire.goaways[1].last_stream_id) == (0, 1)
        wire.request(3)  # above the last stream: RFC 9113 6.8 lets the client send it again elsewhere
        wire.ping()
        served.probe.held.reply(0, b"")
        assert wire.outcome(1) == "served"
        wire.read_to_end()
        assert wire.stream(3).outcome in (None, "rst REFUSED_STREAM")
    assert drain.result(PATIENCE_S)
    assert served.probe.requests == 0


def test_drain__bounded(servers: Servers) -> None:
    """A call that does not end is cut off at the bound; its handler is told, and the drain says so."""
    served = servers.start()
    with channel(served.tcp) as client:
        future = client.unary_unary(path("Hold")).future(b"", timeout=PATIENCE_S)
        served.probe.held.wait(1)
        assert served.drain(timeout_s=0.1) is False
        assert future.exception(PATIENCE_S) is not None
        served.probe.held.wait_cancelled(1)
    served.probe.held.end_all()
    eventually(lambda: served.running() == 0, what="the slot came back")


def test_drain__unacknowledged_ping(servers: Servers) -> None:
    """A client that ignores GOAWAY and PING cannot hold up a drain beyond its bound."""
    served = servers.start()
    with Wire(served.tcp) as wire:
        wire.start()
        wire.acknowledges_pings = False
        drain = draining(served, timeout_s=0.2)
        wire.read_to_end()
    drain.result(PATIENCE_S)


def test_drain__watch_streams_end(servers: Servers) -> None:
    """Health's own drain ends Watch streams with NOT_SERVING as last word, so that the server's is clean."""
    health = HealthService()
    served = servers.start(methods=health.methods())
    served.loop.call(health.set_serving, "", True)
    with channel(served.tcp) as client:
        answers = client.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=PATIENCE_S)
        assert next(answers) == b"\x08\x01"
        served.loop.call(health.drain)
        assert next(answers) == b"\x08\x02"
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert served.drain()


def tolerated_codes(transport: str, rule: str) -> frozenset[grpc.StatusCode]:
    """The codes with which a few calls may fail though *rule* says that none does: mostly no code at all."""
    if "no call fails" in allowed(transport, rule):
        return frozenset()
    return frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE})


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_takeover__no_call_fails(servers: Servers, kind: str) -> None:
    """Under 32 parallel calls one server after another gives way on one endpoint, and no call fails."""
    serving = servers.start()
    endpoint = getattr(serving, kind)
    tolerated = tolerated_codes(serving.transport, "takeover_under_load")
    with channel(endpoint) as client, ClientLoad(client, PARALLEL, tolerated) as load:
        load.wait_for_more(200)
        for _ in range(ROUNDS):
            successor = servers.start(endpoints=(endpoint,))
            assert serving.drain()
            serving = successor
            load.wait_for_more(200)
            assert serving.probe.requests >= 100
    assert load.errors == []
    # Those in flight, and the calls that took their place before the client had read the GOAWAY.
    assert load.refused <= ROUNDS * 2 * PARALLEL


def test_takeover__unix_path_stays_the_successors(servers: Servers) -> None:
    """A server that gives way leaves the path alone once a successor has taken it."""
    first = servers.start()
    second = servers.start(endpoints=(first.unix,))
    assert first.drain()
    with channel(second.unix) as client:
        assert client.unary_unary(path("Echo"))(b"x", timeout=PATIENCE_S) == b"x"
    assert second.probe.requests == 1


def test_unix__mode(servers: Servers) -> None:
    """A Unix socket is open to owner and group whatever the umask, and to nobody else."""
    before = os.umask(0)
    try:
        served = servers.start()
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(served.unix.path).stat().st_mode) == 0o660


def test_unix__stale_socket_is_replaced(servers: Servers, tmp_path: Path) -> None:
    """A socket that a dead process left behind does not hinder the next one."""
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    served = servers.start(endpoints=(Endpoint(path=str(stale)),))
    with channel(served.unix) as client:
        assert client.unary_unary(path("Echo"))(b"x", timeout=PATIENCE_S) == b"x"
    assert stale.is_socket()


def test_unix__abstract_name(servers: Servers, tmp_path: Path) -> None:
    """A path that begins with '@' is an abstract name and leaves no file."""
    served = servers.start(endpoints=(Endpoint(path=f"@sidecar-test-{tmp_path.name}-{os.getpid()}"),))
    with channel(served.unix) as client:
        assert client.unary_unary(path("Echo"))(b"x", timeout=PATIENCE_S) == b"x"


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        (Endpoint("127.0.0.1", 1), "127.0.0.1:1"),
        (Endpoint("192.0.2.1", 0), "192.0.2.1:0"),
        (Endpoint("host.invalid", 0), "host.invalid:0"),
        (Endpoint(path="/nonexistent/folder/socket"), "unix:/nonexistent/folder/socket"),
        (Endpoint(path="/tmp/" + "x" * 120), "107"),
    ],
    ids=["port taken", "foreign address", "unknown host", "no folder", "long path"],
)
def test_listen__errors_name_the_endpoint(servers: Servers, endpoint: Endpoint, says: str) -> None:
    """What cannot be bound is a ListenError that names it; the endpoints bound before it are given up."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if endpoint.port == 1:
            endpoint = Endpoint("127.0.0.1", taken.getsockname()[1])
            says = str(endpoint)
        unix = Endpoint(path=str(servers.folder / "good"))
        with pytest.raises(ListenError, match=says.replace(".", r"\.")):
            servers.start(endpoints=(unix, endpoint))
    assert not Path(unix.path).exists()


def test_listen__error_gives_back_the_ports(servers: Servers) -> None:
    """When one endpoint cannot be bound, those bound before it listen no more."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        good = Endpoint("127.0.0.1", reserved.getsockname()[1])
        with pytest.raises(ListenError):
            servers.start(endpoints=(good, Endpoint("192.0.2.1", 0)))
        assert not _accepts(good)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_listen__one_family(servers: Servers, host: str) -> None:
    """An endpoint opens the addresses it names and no others: the IPv4 wildcard opens no IPv6."""
    (endpoint,) = servers.start(endpoints=(Endpoint(host, 0),)).endpoints
    assert _accepts(Endpoint("127.0.0.1", endpoint.port))
    if host != "0.0.0.0" or "IPv4 only" in allowed(servers.transport, "wildcard_of_ipv4"):
        assert not _accepts(Endpoint("::1", endpoint.port))


def test_age__old_connections_give_way_without_an_error(servers: Servers) -> None:
    """Connections past their age are replaced under load; a call that runs is let finish."""
    served = servers.start(TransportLimits(connection_age_max_s=0.2, connection_age_grace_s=10.0))
    with Relay(served.tcp) as relay, channel(relay.endpoint) as client:
        hold = client.unary_unary(path("Hold")).future(b"", timeout=PATIENCE_S)
        served.probe.held.wait(1)
        tolerated = tolerated_codes(served.transport, "age_under_load")
        with ClientLoad(client, 8, tolerated) as load:
            relay.wait_for(lambda: relay.connections >= 4, "four connections, one after another")
            load.wait_for_more(50)
        served.probe.held.reply(0, b"long call")
        assert hold.result(PATIENCE_S) == b"long call"
        assert load.errors == []
        assert load.refused <= relay.connections * 8


def test_age__grace_is_bounded(servers: Servers) -> None:
    """A call that outlives the age and its grace is cut off with its connection."""
    served = servers.start(TransportLimits(connection_age_max_s=AMPLE_S, connection_age_grace_s=0.1))
    with Wire(served.tcp) as wire:
        wire.start()
        wire.request(1, method="Hold")
        wire.read_to_end()
        assert wire.goaways[0].error_code == 0
    served.probe.held.wait_cancelled(1)


def test_keepalive__grpcio_pings_are_welcome(servers: Servers) -> None:
    """A grpcio client that pings within the limits, idle or in a long call, keeps its one connection."""
    served = servers.start(TransportLimits(ping_interval_min_s=0.01))
    options = (
        ("grpc.keepalive_time_ms", 40),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    with Relay(served.tcp) as relay, channel(relay.endpoint, *options) as client:
        hold = client.unary_unary(path("Hold")).future(b"", timeout=PATIENCE_S)
        served.probe.held.wait(1)
        relay.wait_for(lambda: relay.ping_acks >= 2, "two pings in a call")
        served.probe.held.reply(0, b"quiet but alive")
        assert hold.result(PATIENCE_S) == b"quiet but alive"
        relay.wait_for(lambda: relay.ping_acks >= 4, "two more pings")
        assert client.unary_unary(path("Echo"))(b"x", timeout=PATIENCE_S) == b"x"
        assert relay.connections == 1


def test_keepalive__bandwidth_probes_are_no_offence(servers: Servers) -> None:
    """grpcio's bandwidth probes, a PING with each batch of data, do not count as too many pings."""
    limits = TransportLimits(ping_interval_min_s=300.0, message_bytes_max=1 << 20)
    served = servers.start(limits)
    with Relay(served.tcp) as relay, channel(relay.endpoint, ("grpc.http2.bdp_probe", 1)) as client:
        size = client.unary_unary(path("Size"))
        calls = 0
        while relay.ping_acks < 4:
            calls += 1
            assert size((300_000).to_bytes(4, "big"), timeout=PATIENCE_S) == bytes(300_000)
            assert calls < 2_000, "grpcio sent no bandwidth probe"
        assert relay.connections == 1

"""The fast server on real sockets and both loops: bind, accept, TLS, take-over, drain."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import uvloop

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.transports import accepting
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.server import Endpoint, ListenError, TlsFiles, TransportLimits
from tests.certificates import AuthorityFolder
from tests.unit.transports.rig import PREFACE, settings_frame, window_update
from tests.unit.transports.sockets import LOCALHOST, GrpcClient, LoopThread, RunningServer, connect, dial
from tests.waiting import eventually

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

Serve = Callable[..., RunningServer]


@pytest.fixture(name="thread", params=LOOPS)
def fixture_thread(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    """A loop of each kind; nothing may be left running on it."""
    thread = LoopThread(LOOPS[request.param])
    yield thread
    thread.close()


@pytest.fixture(name="serve")
def fixture_serve(thread: LoopThread) -> Iterator[Serve]:
    """Starts servers, which are drained in the end."""
    started: list[RunningServer] = []

    def serve(*endpoints: Endpoint, limits: TransportLimits | None = None) -> RunningServer:
        started.append(RunningServer(thread, *endpoints, limits=limits))
        return started[-1]

    yield serve
    for served in started:
        served.close()


@pytest.fixture(name="authority")
def fixture_authority(tmp_path: Path) -> AuthorityFolder:
    """A CA."""
    return AuthorityFolder(tmp_path)


def trusting(authority: AuthorityFolder, alpn: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    """A client's context."""
    context = ssl.create_default_context(cafile=authority.ca)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def test_server__serves_tcp_and_unix(serve: Serve, tmp_path: Path) -> None:
    """Port 0 becomes a real port, a path can be called; after the drain both are gone."""
    path = tmp_path / "s.sock"
    served = serve(LOCALHOST, Endpoint(host="::1"), Endpoint(path=str(path)))
    assert [endpoint.port > 0 for endpoint in served.endpoints] == [True, True, False]
    for endpoint in served.endpoints:
        with connect(endpoint) as client:
            assert [client.call(), client.call("/t/Nope")] == ["0", "12"]
    assert served.counts("connections_accepted_total") == 3
    assert served.drain()
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        dial(served.endpoint)


def test_server__binds_all_or_nothing(thread: LoopThread, tmp_path: Path) -> None:
    """One endpoint that cannot be bound, or one missing TLS file: no socket is left."""
    path = tmp_path / "s.sock"
    missing = TlsFiles(tmp_path / "no.crt", tmp_path / "no.key")
    for bad in (Endpoint(path=str(tmp_path / "no" / "s.sock")), Endpoint(host="127.0.0.1", tls=missing)):
        server = FastGrpcServer([], [Endpoint(path=str(path)), bad], TransportLimits(), Metrics(TABLE))
        with pytest.raises(ListenError, match="no"):
            thread.run(server.start())
        assert not path.exists()
        assert thread.run(server.drain(0))


def test_server__a_successor_takes_over_without_a_lost_call(serve: Serve, tmp_path: Path) -> None:
    """Calls go on while a second server takes port and path and the first one drains."""
    first = serve(LOCALHOST, Endpoint(path=str(tmp_path / "s.sock")))
    second = serve(*first.endpoints)
    statuses: list[str | None] = []
    stop = threading.Event()

    def call_on(endpoint: Endpoint) -> None:
        client = connect(endpoint)
        while not stop.is_set():
            if client.goaways:
                client.socket.close()
                client = connect(endpoint)
            statuses.append(client.call())
        client.socket.close()

    callers = [threading.Thread(target=call_on, args=(each,)) for each in first.endpoints for _ in range(3)]
    for caller in callers:
        caller.start()
    eventually(lambda: len(statuses) > 100)
    assert first.drain()
    before = len(statuses)
    eventually(lambda: len(statuses) > before + 100)
    stop.set()
    for caller in callers:
        caller.join()
    assert set(statuses) == {"0"}
    assert second.counts("calls_total", "0") >= 100


def test_drain__serves_what_waits_in_the_backlog(serve: Serve, thread: LoopThread) -> None:
    """Connections that the kernel has accepted and we have not yet are served, not reset."""
    served = serve()
    begun, go_on = threading.Event(), threading.Event()

    def hold_the_loop() -> None:
        begun.set()
        go_on.wait(60)

    thread.loop.call_soon_threadsafe(hold_the_loop)
    begun.wait(60)
    sockets = [dial(served.endpoint) for _ in range(20)]
    draining = served.start_drain()
    go_on.set()
    for each in sockets:
        with GrpcClient(each) as client:
            assert client.call() == "0"
    assert draining.result(60)


def test_drain__waits_for_running_calls(serve: Serve) -> None:
    """A call under way is answered; then the connection closes and the drain is whole."""
    served = serve()
    with connect(served.endpoint) as client:
        stream_id = client.send("/t/Keep")
        eventually(lambda: served.kept.calls)
        draining = served.start_drain()
        client.read_until_goaway()
        assert not draining.done()
        served.reply_all()
        assert client.status(stream_id) == "0"
        client.read_to_end()
    assert draining.result(60)
    served.await_closed("drain")


def test_drain__cuts_a_stuck_call_at_its_bound(serve: Serve) -> None:
    """False, the handler cancelled, the client's connection closed; a second drain finds nothing."""
    served = serve()
    with connect(served.endpoint) as client:
        stream_id = client.send("/t/Keep")
        eventually(lambda: served.kept.calls)
        assert not served.drain(0.05)
        assert served.kept.cancelled == 1
        assert client.status(stream_id) is None
    served.reply_all()
    assert served.counts("calls_running") == 0
    assert served.drain(0.05)


def test_drain__aborts_a_peer_that_does_not_read(serve: Serve) -> None:
    """Its socket is full, so that not even our last words can be written; the bound holds all the same."""
    served = serve(limits=TransportLimits(write_buffer_bytes_max=64 << 20, message_bytes_max=1 << 20))
    client = connect(served.endpoint)
    assert client.call() == "0"
    client.socket.sendall(window_update(0, 1 << 30))
    kept = [client.send("/t/Keep") for _ in range(200)]
    eventually(lambda: len(served.kept.calls) == len(kept))
    served.reply_all(b"x" * 60_000)
    assert not served.drain(0.05)
    eventually(lambda: served.open == 0)
    client.socket.close()


def test_server__has_a_maximum_of_connections(serve: Serve) -> None:
    """The one past it is closed at once and counted; when one leaves, the next is served."""
    served = serve(limits=TransportLimits(connections_max=2))
    with connect(served.endpoint) as first, connect(served.endpoint) as second:
        assert [first.call(), second.call()] == ["0", "0"]
        with connect(served.endpoint) as third:
            assert third.call() is None
    served.await_closed("connection_limit")
    eventually(lambda: served.open == 0)
    with connect(served.endpoint) as fourth:
        assert fourth.call() == "0"


def test_server__unix_peers_are_not_counted_by_address(serve: Serve, tmp_path: Path) -> None:
    """A Unix socket has no address to count; a TCP client has one."""
    limits = TransportLimits(connections_per_peer_max=1)
    tcp, unix = serve(LOCALHOST, Endpoint(path=str(tmp_path / "s.sock")), limits=limits).endpoints
    with connect(unix) as first, connect(unix) as second:
        assert [first.call(), second.call()] == ["0", "0"]
    with connect(tcp) as first, connect(tcp) as second:
        assert [first.call(), second.call()] == ["0", None]


def test_accept__pauses_without_file_descriptors(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors the server waits instead of spinning, and goes on by itself."""
    monkeypatch.setattr(accepting, "PAUSE_S", 0.01)
    served = serve()
    client = socket.socket()
    client.settimeout(60)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free_descriptor(), hard))
    try:
        client.connect((served.endpoint.host, served.endpoint.port))
        eventually(lambda: served.counts("accept_pauses_total") >= 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in caplog.text
    with GrpcClient(client) as answered:
        assert answered.call() == "0"


def lowest_free_descriptor() -> int:
    """The number that the next opened file would get."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_tls__serves_clients_of_the_ca(serve: Serve, authority: AuthorityFolder) -> None:
    """Mutual TLS: a certificate of the CA is served, none is not; failures are counted."""
    served = serve(
        Endpoint(host="127.0.0.1", tls=TlsFiles(*authority.sign("server"), client_ca=authority.ca))
    )
    context = trusting(authority)
    context.load_cert_chain(*authority.sign("client"))
    with connect(served.endpoint, context) as client:
        assert client.call() == "0"
    with connect(served.endpoint, trusting(authority)) as stranger:
        assert stranger.call() is None
    served.await_closed("handshake")


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
def test_tls__without_h2_there_is_no_service(
    serve: Serve, authority: AuthorityFolder, alpn: tuple[str, ...]
) -> None:
    """RFC 9113 3.3: the connection is closed before a byte of HTTP/2."""
    served = serve(Endpoint(host="127.0.0.1", tls=TlsFiles(*authority.sign("server"))))
    with connect(served.endpoint, trusting(authority, alpn)) as client:
        assert client.call() is None
    served.await_closed("handshake")


def test_tls__plain_text_and_silence_are_no_handshake(serve: Serve, authority: AuthorityFolder) -> None:
    """A plain client is refused; a silent one counts as open from the start, and is given up in time."""
    limits = TransportLimits(handshake_timeout_s=2.0, connections_max=1)
    served = serve(Endpoint(host="127.0.0.1", tls=TlsFiles(*authority.sign("server"))), limits=limits)
    with dial(served.endpoint) as plain:
        plain.sendall(PREFACE + settings_frame())
        served.await_closed("handshake")
    with dial(served.endpoint):
        eventually(lambda: served.open == 1)
        with dial(served.endpoint):
            served.await_closed("connection_limit")
        served.await_closed("handshake", 2)


def test_tls__a_reload_is_seen_by_new_connections_only(
    serve: Serve, thread: LoopThread, authority: AuthorityFolder
) -> None:
    """The open connection goes on; a new one gets the new certificate; a bad file changes nothing."""
    certificate, key = authority.sign("server")
    served = serve(Endpoint(host="127.0.0.1", tls=TlsFiles(certificate, key)))

    def serial() -> object:
        with connect(served.endpoint, trusting(authority)) as client:
            assert isinstance(client.socket, ssl.SSLSocket)
            return (client.socket.getpeercert() or {})["serialNumber"]

    with connect(served.endpoint, trusting(authority)) as client:
        assert client.call() == "0"
        before = serial()
        authority.sign("server")
        thread.call(lambda: served.server.on_due(thread.loop.time()))
        after = serial()
        assert after != before
        key.write_text("broken")
        assert not thread.call(served.server.reload_tls)
        assert serial() == after
        assert client.call() == "0"


def test_tls__a_drain_cuts_handshakes(serve: Serve, authority: AuthorityFolder) -> None:
    """A client that never finishes its handshake holds no drain up, and nothing of it is lost."""
    served = serve(Endpoint(host="127.0.0.1", tls=TlsFiles(*authority.sign("server"))))
    with dial(served.endpoint):
        eventually(lambda: served.open == 1)
        assert served.drain(0.05)
        served.await_closed("handshake")

"""TLS and mutual TLS: who is let in, with which protocol, and certificates that change."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from sidecar.transports.server import Endpoint, ListenError, TlsFiles, TransportLimits
from tests.certificates import Authority, Identity, replace, write
from tests.waiting import PATIENCE_S, eventually

from .probe import path
from .served import Served, Servers, address
from .wire import Wire


@pytest.fixture(scope="module")
def authority() -> Authority:
    """The authority that servers and good clients have in common."""
    return Authority("Test authority")


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TlsFiles:
    """A server's certificate and key."""
    made = TlsFiles(tmp_path / "server.crt", tmp_path / "server.key")
    write(made, authority.issue("server"))
    return made


@pytest.fixture
def mutual_files(authority: Authority, tmp_path: Path) -> TlsFiles:
    """The same, and the authority that client certificates must be from."""
    made = TlsFiles(tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "clients.crt")
    write(made, authority.issue("server"), authority.certificate)
    return made


@pytest.fixture
def quick_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fast transport look for changed files often; the reference looks at each handshake."""
    monkeypatch.setattr("sidecar.transports.fast.server.POLL_INTERVAL_S", 0.02)


@contextmanager
def tls_channel(
    endpoint: Endpoint, authority: Authority, identity: Identity | None = None
) -> Iterator[grpc.Channel]:
    """A grpcio channel that trusts *authority* and shows *identity*."""
    credentials = grpc.ssl_channel_credentials(
        authority.certificate,
        identity.key if identity else None,
        identity.certificate if identity else None,
    )
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost"))
    with grpc.secure_channel(address(endpoint), credentials, options=options) as opened:
        yield opened


def echo(channel: grpc.Channel) -> bytes:
    """One call."""
    return channel.unary_unary(path("Echo"))(b"through TLS", timeout=PATIENCE_S)


def client_context(*protocols: str) -> ssl.SSLContext:
    """A client that trusts anybody and offers *protocols* by ALPN."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def serial_shown(endpoint: Endpoint) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with Wire(endpoint, tls=client_context("h2")) as wire:
        shown = wire.socket.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


def serial(identity: Identity) -> int:
    """The serial number of *identity*'s certificate."""
    return x509.load_pem_x509_certificate(identity.certificate).serial_number


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_tls__serves(servers: Servers, authority: Authority, files: TlsFiles, kind: str) -> None:
    """A client that trusts the authority is served, over TCP and over a Unix socket."""
    served = servers.start(tls=files)
    with tls_channel(getattr(served, kind), authority) as channel:
        assert echo(channel) == b"through TLS"


def test_tls__untrusted_server(servers: Servers, files: TlsFiles) -> None:
    """A client that trusts another authority makes no call, and the server goes on."""
    served = servers.start(tls=files)
    with (
        tls_channel(served.tcp, Authority("Somebody else")) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        echo(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert served.probe.requests == 0


def test_tls__raw_frames(servers: Servers, files: TlsFiles) -> None:
    """Under TLS frames are what they are without: a raw client with ALPN h2 is served, also large answers."""
    served = servers.start(tls=files)
    with Wire(served.tcp, tls=client_context("h2")) as wire:
        wire.start((4, 1 << 20))
        wire.credit(0, 1 << 20)
        for number in range(50):
            wire.request(2 * number + 1, (30_000).to_bytes(4, "big"), "Size")
            assert wire.outcome(2 * number + 1) == "served"
            wire.credit(0, 40_000)


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)], ids=["no ALPN", "http/1.1"])
def test_tls__only_h2(servers: Servers, files: TlsFiles, protocols: tuple[str, ...]) -> None:
    """A client that does not choose h2 by ALPN is closed before it can say anything (RFC 9113 3.2)."""
    served = servers.start(tls=files)
    assert not is_served(served, client_context(*protocols))


def is_served(served: Served, context: ssl.SSLContext) -> bool:
    """Whether a raw client with this TLS context gets an answer; False = closed or refused."""
    try:
        with Wire(served.tcp, tls=context) as wire:
            wire.send_preface()
            wire.request(1)
            return wire.read_until(lambda: wire.stream(1).outcome == "served")
    except (ssl.SSLError, ConnectionError):
        return False


def test_tls__old_versions(servers: Servers, files: TlsFiles) -> None:
    """TLS 1.1 is refused, 1.2 is served (RFC 9113 9.2)."""
    served = servers.start(tls=files)
    modern, old = client_context("h2"), client_context("h2")
    modern.maximum_version = ssl.TLSVersion.TLSv1_2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of what this test is about
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    assert is_served(served, modern)
    assert not is_served(served, old)


def test_tls__plain_client(servers: Servers, files: TlsFiles) -> None:
    """A client that speaks HTTP/2 without TLS to a TLS port is closed."""
    served = servers.start(tls=files)
    with Wire(served.tcp) as wire:
        wire.send_preface()
        wire.read_to_end()
        assert wire.settings == []


def test_tls__silent_client_is_closed(servers: Servers, files: TlsFiles) -> None:
    """A client that connects and never begins its handshake is closed in time."""
    served = servers.start(TransportLimits(handshake_timeout_s=0.2), tls=files)
    with socket.create_connection((served.tcp.host, served.tcp.port), PATIENCE_S) as silent:
        assert silent.recv(1) == b""


def test_mutual__good_client(servers: Servers, authority: Authority, mutual_files: TlsFiles) -> None:
    """A client whose certificate the authority signed is served."""
    served = servers.start(tls=mutual_files)
    with tls_channel(served.tcp, authority, authority.issue("client")) as channel:
        assert echo(channel) == b"through TLS"


@pytest.mark.parametrize("kind", ["foreign", "none"])
def test_mutual__wrong_client(
    servers: Servers, authority: Authority, mutual_files: TlsFiles, kind: str
) -> None:
    """A client with another authority's certificate, or with none, reaches no handler."""
    served = servers.start(tls=mutual_files)
    identity = Authority("Test authority").issue("client") if kind == "foreign" else None
    with (
        tls_channel(served.tcp, authority, identity) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        echo(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert served.probe.requests == 0


@pytest.mark.usefixtures("quick_poll")
def test_reload__new_certificate_for_new_connections(
    servers: Servers, authority: Authority, files: TlsFiles
) -> None:
    """A replaced certificate is shown to the next connections; open ones go on undisturbed."""
    served = servers.start(tls=files)
    with tls_channel(served.tcp, authority) as channel:
        assert echo(channel) == b"through TLS"
        renewed = authority.issue("renewed")
        assert serial_shown(served.tcp) != serial(renewed)
        write(files, renewed)
        eventually(lambda: serial_shown(served.tcp) == serial(renewed), what="the new certificate is shown")
        assert echo(channel) == b"through TLS"


@pytest.mark.usefixtures("quick_poll")
def test_reload__bad_files_keep_the_old_certificate(
    servers: Servers, authority: Authority, files: TlsFiles
) -> None:
    """Files that cannot be used, or not together, change nothing but a counter; the next good ones do."""
    served = servers.start(endpoints=(Endpoint("127.0.0.1", 0, tls=files),))
    before = serial_shown(served.tcp)
    bad = (b"no certificate at all", authority.issue("of another key").certificate)
    for count, certificate in enumerate(bad, start=1):
        replace(files.certificate, certificate)
        eventually(
            lambda count=count: serial_shown(served.tcp) == before and served.reloads("failed") == count,
            what="the bad file was looked at and the old certificate is shown",
        )
    good = authority.issue("good again")
    write(files, good)
    eventually(lambda: serial_shown(served.tcp) == serial(good), what="the good certificate is shown")
    assert served.reloads("ok") >= 1


@pytest.mark.usefixtures("quick_poll")
@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES], ids=errno.errorcode.get
)
def test_reload__a_renewal_that_could_not_be_read(
    servers: Servers,
    authority: Authority,
    files: TlsFiles,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A certificate that was renewed while reading failed is shown once reading works, untouched since."""
    served = servers.start(endpoints=(Endpoint("127.0.0.1", 0, tls=files),))
    before, renewed = serial_shown(served.tcp), authority.issue("renewed")
    tried: list[None] = []

    def failing(path: Path, bytes_max: int) -> bytes:
        tried.append(None)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr("sidecar.transports.tls.read_regular_file", failing)
        write(files, renewed)
        eventually(
            lambda: serial_shown(served.tcp) == before and len(tried) > 3, what="reading was tried again"
        )
        assert (served.reloads("failed"), served.unreadable("tls")) == (1, 1)
    eventually(lambda: serial_shown(served.tcp) == serial(renewed), what="the renewed certificate is shown")
    assert (served.reloads("failed"), served.unreadable("tls")) == (1, 0)


def test_reload__on_demand(servers: Servers, authority: Authority, files: TlsFiles) -> None:
    """A reload that is asked for works at once and says whether the files were good."""
    served = servers.start(tls=files)
    renewed = authority.issue("renewed")
    write(files, renewed)
    assert served.loop.call(served.server.reload_tls)
    assert serial_shown(served.tcp) == serial(renewed)
    replace(files.key, b"no key")
    assert not served.loop.call(served.server.reload_tls)
    assert serial_shown(served.tcp) == serial(renewed)


@pytest.mark.usefixtures("quick_poll")
def test_reload__client_authority(servers: Servers, authority: Authority, mutual_files: TlsFiles) -> None:
    """A replaced client authority decides about the next connections."""
    served = servers.start(tls=mutual_files)
    other = Authority("New authority of clients")
    assert mutual_files.client_ca is not None
    replace(mutual_files.client_ca, other.certificate)

    def is_let_in(identity: Identity) -> bool:
        with tls_channel(served.tcp, authority, identity) as channel:
            try:
                return echo(channel) == b"through TLS"
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return False

    newcomer, former = other.issue("newcomer"), authority.issue("former")
    eventually(lambda: is_let_in(newcomer), what="a client of the new authority is let in")
    assert not is_let_in(former)


@pytest.mark.parametrize("fault", ["missing certificate", "no PEM", "other key", "missing client CA"])
def test_listen__bad_files(
    servers: Servers, authority: Authority, mutual_files: TlsFiles, fault: str
) -> None:
    """Files that cannot be used are a ListenError that names what is wrong, before anything is served."""
    assert mutual_files.client_ca is not None
    if fault == "missing certificate":
        mutual_files.certificate.unlink()
    elif fault == "no PEM":
        mutual_files.certificate.write_bytes(b"text")
    elif fault == "other key":
        mutual_files.key.write_bytes(authority.issue("other").key)
    else:
        mutual_files.client_ca.unlink()
    named = mutual_files.client_ca if fault == "missing client CA" else mutual_files.certificate
    with pytest.raises(ListenError, match=named.name):
        servers.start(tls=mutual_files)

"""TLS contexts: what they accept, and how they follow their files."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

import pytest

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.transports.server import ListenError, TlsFiles
from sidecar.transports.tls import TlsContext, server_context, signature
from tests.certificates import AuthorityFolder, encrypt_key


@pytest.fixture(name="authority")
def fixture_authority(tmp_path: Path) -> AuthorityFolder:
    """A CA."""
    return AuthorityFolder(tmp_path)


def client_context(authority: AuthorityFolder, *alpn: str) -> ssl.SSLContext:
    """A client that trusts *authority* and offers *alpn*."""
    context = ssl.create_default_context(cafile=authority.ca)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands in memory; returns both ends as (server, client)."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    pending = [client_end, server_end]
    for _ in range(10):
        for end in list(pending):
            try:
                end.do_handshake()
                pending.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not pending
    # TLS 1.3: the server looks at the client's certificate after the client is done.
    return server_end, client_end


def common_name(end: ssl.SSLObject) -> str:
    """Whose certificate the other end has shown."""
    certificate = end.getpeercert()
    assert certificate is not None
    return str(dict(pair for part in certificate["subject"] for pair in part)["commonName"])


def test_server_context__speaks_h2(authority: AuthorityFolder) -> None:
    """ALPN settles on h2, over TLS 1.3 where the client can."""
    server = server_context(TlsFiles(*authority.sign("server")))
    _, client = handshake(server, client_context(authority, "http/1.1", "h2"))
    assert client.selected_alpn_protocol() == "h2"
    assert client.version() == "TLSv1.3"
    assert common_name(client) == "server"


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
def test_server_context__selects_nothing_else(authority: AuthorityFolder, alpn: tuple[str, ...]) -> None:
    """A client without h2 gets no protocol selected, by which the connection is closed."""
    server = server_context(TlsFiles(*authority.sign("server")))
    server_end, _ = handshake(server, client_context(authority, *alpn))
    assert server_end.selected_alpn_protocol() is None


def test_server_context__tls_1_2_is_the_oldest(authority: AuthorityFolder) -> None:
    """TLS 1.2 with forward secrecy and AEAD is served, anything older or weaker refused."""
    server = server_context(TlsFiles(*authority.sign("server")))
    client = client_context(authority, "h2")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    _, end = handshake(server, client)
    cipher = end.cipher()
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-")
    assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
    client.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA")
    with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
        handshake(server, client)
    assert server.minimum_version == ssl.TLSVersion.TLSv1_2


def test_server_context__a_client_ca_demands_certificates(authority: AuthorityFolder, tmp_path: Path) -> None:
    """With a client CA only its clients are served."""
    server = server_context(TlsFiles(*authority.sign("server"), client_ca=authority.ca))
    good = client_context(authority, "h2")
    good.load_cert_chain(*authority.sign("client"))
    server_end, _ = handshake(server, good)
    assert common_name(server_end) == "client"
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server, client_context(authority, "h2"))
    stranger = client_context(authority, "h2")
    stranger.load_cert_chain(*AuthorityFolder(tmp_path, "other").sign("stranger"))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server, stranger)


@pytest.mark.parametrize("missing", ["certificate", "key", "client_ca"])
def test_server_context__names_a_missing_file(
    authority: AuthorityFolder, tmp_path: Path, missing: str
) -> None:
    """Whichever file is missing is the one that the error names."""
    certificate, key = authority.sign("server")
    paths = {"certificate": certificate, "key": key, "client_ca": authority.ca, missing: tmp_path / "gone"}
    with pytest.raises(ListenError, match=f"{tmp_path / 'gone'}: No such file"):
        server_context(TlsFiles(**paths))


def test_server_context__names_a_key_of_another_certificate(authority: AuthorityFolder) -> None:
    """A pair that does not fit is told from one that cannot be read."""
    certificate, _ = authority.sign("server")
    _, other_key = authority.sign("other")
    with pytest.raises(ListenError, match=r"server\.crt and .*other\.key: the key does not belong"):
        server_context(TlsFiles(certificate, other_key))


def test_server_context__does_not_ask_for_a_password(authority: AuthorityFolder) -> None:
    """An encrypted key is an error, never a prompt on the terminal."""
    certificate, key = authority.sign("server")
    encrypt_key(key)
    with pytest.raises(ListenError, match="unencrypted key"):
        server_context(TlsFiles(certificate, key))


@pytest.mark.parametrize("text", ["", "no PEM at all"])
def test_server_context__names_a_file_that_is_no_pem(
    authority: AuthorityFolder, tmp_path: Path, text: str
) -> None:
    """Empty and foreign files are told as such, in each role."""
    certificate, key = authority.sign("server")
    odd = tmp_path / "odd"
    odd.write_text(text)
    with pytest.raises(ListenError, match=r"odd and .*not a PEM certificate chain"):
        server_context(TlsFiles(odd, key))
    with pytest.raises(ListenError, match="odd: it has no PEM certificate of a CA"):
        server_context(TlsFiles(certificate, key, odd))


def test_signature__changes_with_each_file(authority: AuthorityFolder) -> None:
    """A rewritten, replaced or removed file shows, whichever it is; an untouched set does not."""
    certificate, key = authority.sign("server")
    files = TlsFiles(certificate, key, authority.ca)
    seen = [signature(files)]
    for path in (certificate, key, authority.ca):
        copy = path.with_suffix(".new")
        copy.write_bytes(path.read_bytes())
        copy.rename(path)
        seen.append(signature(files))
    key.unlink()
    seen.append(signature(files))
    assert len(set(seen)) == 5
    assert signature(files) == seen[-1]


def test_tls_context__a_changed_certificate_serves_new_connections(authority: AuthorityFolder) -> None:
    """After a poll that sees the change, new handshakes show it; the old context lives on."""
    files = TlsFiles(*authority.sign("server"))
    metrics = Metrics(TABLE)
    context = TlsContext(files, metrics)
    before = context.current
    context.poll()
    assert context.current is before
    old_serial = serial_of(before, authority)
    authority.sign("server")
    context.poll()
    assert context.current is not before
    assert serial_of(context.current, authority) != old_serial
    assert serial_of(before, authority) == old_serial
    assert metrics.value("sidecar_tls_reloads_total", "ok") == 1


def serial_of(context: ssl.SSLContext, authority: AuthorityFolder) -> str:
    """The serial number of the certificate that *context* shows."""
    _, client = handshake(context, client_context(authority, "h2"))
    certificate = client.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


def test_tls_context__a_bad_file_keeps_the_former_context(
    authority: AuthorityFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-written pair changes nothing, is counted and logged once, and mends by itself."""
    certificate, key = authority.sign("server")
    metrics = Metrics(TABLE)
    context = TlsContext(TlsFiles(certificate, key), metrics)
    before = context.current
    good = certificate.read_bytes()
    certificate.write_bytes(good[:100])
    with caplog.at_level(logging.ERROR, "sidecar.transports"):
        context.poll()
        context.poll()
    assert context.current is before
    assert metrics.value("sidecar_tls_reloads_total", "failed") == 1
    assert [str(certificate) in record.getMessage() for record in caplog.records] == [True]
    certificate.write_bytes(good)
    context.poll()
    assert context.current is not before
    assert metrics.value("sidecar_tls_reloads_total", "ok") == 1


def test_tls_context__reload_does_not_wait_for_a_change(authority: AuthorityFolder) -> None:
    """An explicit reload loads at once and says whether it worked."""
    certificate, key = authority.sign("server")
    context = TlsContext(TlsFiles(certificate, key), Metrics(TABLE))
    before = context.current
    assert context.reload()
    assert context.current is not before
    key.unlink()
    assert not context.reload()


def test_tls_context__reports_the_earliest_end_of_its_kind(authority: AuthorityFolder) -> None:
    """Of all listeners of a kind; a renewed certificate moves it."""
    metrics = Metrics(TABLE)
    files = TlsFiles(*authority.sign("server"), listener="grpc")
    siblings: list[TlsContext] = []
    first = TlsContext(files, metrics, siblings)
    assert abs(first.ends_at_s - (time.time() + 86_400)) < 3_600
    first.ends_at_s -= 1_000
    TlsContext(files, metrics, siblings)
    name = "sidecar_tls_certificate_expires_timestamp_seconds"
    assert metrics.value(name, "grpc") == first.ends_at_s
    assert first.reload()
    assert metrics.value(name, "grpc") == first.ends_at_s > time.time()
    assert metrics.value(name, "admin") == 0

"""
The redis-servers of a test run: each kind starts once, on free ports, and ends with it, by pid.

    servers = shared()
    servers.standalone.url       # redis://127.0.0.1:40123
    servers.cluster.servers      # the processes

Tests that share a server keep apart by key prefix; tests that kill or reconfigure one start their own.
"""

from __future__ import annotations

import atexit
import datetime
import ipaddress
import re
import shutil
import tempfile
from functools import cache, cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadtest.redis_servers import LOOPBACK, ClusterGroup, RedisServer, SentinelGroup, free_port, stop_all

__all__ = ("LOOPBACK", "ClusterGroup", "RedisServer", "SentinelGroup", "free_port", "shared")

PERMISSIONS_PAGE = Path(__file__).parents[1] / "docs" / "operate" / "registry-redis.md"


def documented_permissions() -> list[str]:
    """What the page gives to the sidecar's user: where buckets alone are in Redis, and with the registry."""
    return re.findall(r"^user sidecar on >… (.+)$", PERMISSIONS_PAGE.read_text(), re.MULTILINE)


SIDECAR_PERMISSIONS = documented_permissions()[0]

ACL_USERS = (
    "user default off",
    f"user limited on >correct {SIDECAR_PERMISSIONS}",
    "user mute on >correct resetchannels ~sidecar:* +info +script|load +get +set",
    "user admin on >correct ~* &* +@all",
)


STALL_MS_MAX = 30_000
"""A shared group replaces no primary in this time: what stalls is the machine."""


class TlsFiles:
    """A certificate authority, a server certificate for loopback and a client certificate, as files."""

    def __init__(self, folder: Path) -> None:
        """Make them in *folder*."""
        folder.mkdir(parents=True, exist_ok=True)
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = _certificate("authority", authority_key, None, authority_key)
        self.ca = _write(folder / "ca.pem", authority)
        for role in ("server", "client"):
            key = ec.generate_private_key(ec.SECP256R1())
            _write(folder / f"{role}.pem", _certificate(role, key, authority, authority_key))
            _write(folder / f"{role}.key", key)
        self.server_cert, self.server_key = folder / "server.pem", folder / "server.key"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"


class TlsServer(RedisServer):
    """A server that speaks TLS only, on `tls_port`, and wants a client certificate."""

    def __init__(self, folder: Path, files: TlsFiles) -> None:
        """Use *files*."""
        self.tls_port = free_port()
        super().__init__(
            folder,
            *("--tls-port", str(self.tls_port), "--tls-ca-cert-file", str(files.ca)),
            *("--tls-cert-file", str(files.server_cert), "--tls-key-file", str(files.server_key)),
            port=0,
        )


class SharedServers:
    """The servers that tests share; each is started when it is first asked for."""

    def __init__(self) -> None:
        """Make a folder; nothing runs yet."""
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))

    @cached_property
    def standalone(self) -> RedisServer:
        """A plain server."""
        return RedisServer(self.folder / "standalone").start()

    @cached_property
    def sentinel(self) -> SentinelGroup:
        """A primary with replicas and Sentinels; do not kill anything in it."""
        return SentinelGroup(self.folder / "sentinel", STALL_MS_MAX)

    @cached_property
    def cluster(self) -> ClusterGroup:
        """A Cluster; do not kill anything in it."""
        return ClusterGroup(self.folder / "cluster", STALL_MS_MAX)

    @cached_property
    def tls_files(self) -> TlsFiles:
        """Certificates of the TLS server and its clients."""
        return TlsFiles(self.folder / "certificates")

    @cached_property
    def tls(self) -> TlsServer:
        """A server that speaks TLS only and wants a client certificate."""
        return TlsServer(self.folder / "tls", self.tls_files).start()

    @cached_property
    def unix(self) -> RedisServer:
        """A server on a Unix socket only: `socket` in its folder."""
        folder = self.folder / "unix"
        return RedisServer(folder, "--unixsocket", str(folder / "socket"), port=0).start()

    @cached_property
    def guarded(self) -> RedisServer:
        """A server whose users are those of `ACL_USERS`; nobody gets in without a password."""
        folder = self.folder / "guarded"
        folder.mkdir(parents=True)
        users = folder / "users.acl"
        users.write_text("\n".join(ACL_USERS) + "\n")
        return RedisServer(folder, "--aclfile", str(users)).start()

    def stop(self) -> None:
        """End everything that was started, and remove the folder."""
        stop_all()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def shared() -> SharedServers:
    """The servers of this run; they end with it."""
    servers = SharedServers()
    atexit.register(servers.stop)
    return servers


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def _write(path: Path, thing: x509.Certificate | ec.EllipticCurvePrivateKey) -> Path:
    if isinstance(thing, x509.Certificate):
        path.write_bytes(thing.public_bytes(serialization.Encoding.PEM))
    else:
        path.write_bytes(
            thing.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return path

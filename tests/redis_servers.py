"""
Real redis-servers for tests: each kind starts once a run, on free ports, and ends with it, by pid.

    servers = shared()
    servers.standalone.url       # redis://127.0.0.1:40123
    servers.cluster.primaries()  # the processes, to be killed

Tests that share a server keep apart by key prefix; tests that kill or reconfigure one start their own.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import ipaddress
import shutil
import signal
import socket
import subprocess
import tempfile
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.waiting import eventually

LOOPBACK = "127.0.0.1"
SERVICE = "main"
SLOTS = 16_384
QUICK_REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")

SIDECAR_PERMISSIONS = (
    "resetchannels ~sidecar:* +evalsha +script|load +time +mget +set +get +zadd +pexpire +zrem"
    " +zremrangebyscore +zcard +client|setname"
)
"""What docs/registry-redis.md says that the sidecar's user needs, and nothing else."""

ACL_USERS = (
    "user default off",
    f"user limited on >correct {SIDECAR_PERMISSIONS}",
    "user mute on >correct resetchannels ~sidecar:* +script|load +get +set",
    "user admin on >correct ~* &* +@all",
)
START_S = 15.0
PORT_ATTEMPTS = 8


def server_program() -> str:
    """
    The path of redis-server.

    Raises:
        RuntimeError: there is none; says how to get it.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("the tests need redis-server 6.2 or newer: apt-get install redis-server")
    return program


def free_port() -> int:
    """A port that nobody listens on; below 55,535, so that its Cluster bus port (+ 10,000) exists too."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind((LOOPBACK, 0))
            port: int = probe.getsockname()[1]
            if port >= 55_535:
                continue
            with contextlib.suppress(OSError):
                bus.bind((LOOPBACK, port + 10_000))
                return port


class RedisServer:
    """
    One redis-server process on loopback.

    *options* are those of its command line and win over the defaults. `port` is where it listens in
    clear, 0 = only where *options* say: then `start` waits for the log.
    """

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        """Lay out *folder*; *port* None = any free one."""
        self.folder = folder
        self.port = 0 if port is None else port
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self._picks_port = port is None
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> Self:
        """
        Start the process and wait until it takes connections.

        A free port may be gone before the server binds it; then another one is tried.
        """
        for _ in range(PORT_ATTEMPTS):
            if self._picks_port:
                self.port = free_port()
            self._run()
            if eventually(lambda: self._is_up() or self._has_ended(), START_S, str(self.folder)) == "up":
                self._picks_port = False
                return self
            self._reap()
        raise RuntimeError(f"redis-server in {self.folder} does not start: {self._log()}")

    def _run(self) -> None:
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        defaults = ("--bind", LOOPBACK, "--save", "", "--appendonly", "no", "--dir", str(self.folder))
        arguments = (*self._command(), *defaults, "--logfile", str(log), "--port", str(self.port))
        self.process = subprocess.Popen(
            (*arguments, *self.options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _running.append(self)

    def _command(self) -> tuple[str, ...]:
        return (server_program(),)

    def _is_up(self) -> str:
        if "eady to accept connections" not in self._log() and not self._listens():
            return ""
        return "" if self._has_ended() else "up"

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1):
            return self.port > 0
        return False

    def _has_ended(self) -> str:
        assert self.process is not None
        return "" if self.process.poll() is None else "ended"

    def _log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace")[-2_000:] if path.exists() else ""

    @property
    def url(self) -> str:
        """How to reach it."""
        return f"redis://{LOOPBACK}:{self.port}"

    @cached_property
    def client(self) -> Any:
        """An independent client, for what tests look at and change."""
        return redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=START_S)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """End it gently, also when frozen."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        self._reap()

    def freeze(self) -> None:
        """Let it hang: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _reap(self) -> None:
        client = self.__dict__.pop("client", None)
        if client is not None:
            client.close()
        if self.process is not None:
            self.process.wait(START_S)
        if self in _running:
            _running.remove(self)


class SentinelServer(RedisServer):
    """One Sentinel process that watches the service 'main'."""

    def __init__(self, folder: Path, primary_port: int) -> None:
        """Watch the primary on *primary_port*; two of three decide that it is down after 300 ms."""
        super().__init__(folder)
        self._config = folder / "sentinel.conf"
        self._config.write_text(
            f"sentinel monitor {SERVICE} {LOOPBACK} {primary_port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 300\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )

    def _command(self) -> tuple[str, ...]:
        return (server_program(), str(self._config), "--sentinel")

    def _is_up(self) -> str:
        return "up" if self._listens() and not self._has_ended() else ""


class SentinelGroup:
    """One primary, two replicas, three Sentinels; they know each other when the constructor returns."""

    def __init__(self, folder: Path) -> None:
        """Start the six processes."""
        first = RedisServer(folder / "data0", *QUICK_REPLICATION).start()
        replica_of = ("--replicaof", f"{LOOPBACK} {first.port}", *QUICK_REPLICATION)
        self.servers = [first, *(RedisServer(folder / f"data{i}", *replica_of).start() for i in (1, 2))]
        eventually(lambda: _replicas_online(first) == 2, START_S, "replicas online")
        self.sentinels = [SentinelServer(folder / f"sentinel{i}", first.port).start() for i in range(3)]
        eventually(lambda: all(map(self._is_complete, self.sentinels)), START_S, "Sentinels know each other")

    @staticmethod
    def _is_complete(sentinel: SentinelServer) -> bool:
        [master] = sentinel.client.sentinel_masters().values()
        return bool(master["num-slaves"] >= 2 and master["num-other-sentinels"] >= 2)

    @property
    def url(self) -> str:
        """How to reach it."""
        hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    @property
    def primary(self) -> RedisServer:
        """The primary that the first Sentinel names now."""
        _, port = self.sentinels[0].client.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def stop(self) -> None:
        """End all processes."""
        for server in (*self.sentinels, *self.servers):
            server.stop()


class ClusterGroup:
    """Three primaries with equal slices of the slots and a replica each."""

    def __init__(self, folder: Path) -> None:
        """Start the six processes and join them."""
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "600", *QUICK_REPLICATION)
        self.servers = [RedisServer(folder / f"node{i}", *options).start() for i in range(6)]
        primaries, replicas = self.servers[:3], self.servers[3:]
        for index, primary in enumerate(primaries):
            first, end = (SLOTS * part // 3 for part in (index, index + 1))
            primary.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            primary.client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for server in self.servers[1:]:
            server.client.execute_command("CLUSTER MEET", LOOPBACK, self.servers[0].port)
        eventually(lambda: all(self._knows(server, 6) for server in self.servers), START_S, "nodes have met")
        for primary, replica in zip(primaries, replicas, strict=True):
            node_id = primary.client.execute_command("CLUSTER MYID")
            replica.client.execute_command("CLUSTER REPLICATE", node_id)
        eventually(lambda: all(map(self._is_whole, self.servers)), START_S, "the Cluster is whole")
        eventually(lambda: all(_replicas_online(primary) for primary in primaries), START_S, "replicas")

    @staticmethod
    def _knows(server: RedisServer, nodes: int) -> bool:
        listed = server.client.execute_command("CLUSTER NODES")
        return len(listed) == nodes and not any("handshake" in node["flags"] for node in listed.values())

    @staticmethod
    def _is_whole(server: RedisServer) -> bool:
        info = server.client.execute_command("CLUSTER INFO")
        listed = server.client.execute_command("CLUSTER NODES")
        return info["cluster_state"] == "ok" and sum("slave" in n["flags"] for n in listed.values()) == 3

    @property
    def url(self) -> str:
        """How to reach it."""
        return f"redis+cluster://{','.join(f'{LOOPBACK}:{server.port}' for server in self.servers[:3])}"

    def primary_of(self, slot: int) -> RedisServer:
        """The server that holds *slot*, as those alive see it."""
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                for first, last, owner, *_ in server.client.execute_command("CLUSTER SLOTS"):
                    if first <= slot <= last:
                        return next(one for one in self.servers if one.port == owner[1])
        raise AssertionError(f"nobody serves slot {slot}")

    def flush(self) -> None:
        """Forget all keys."""
        for server in self.servers[:3]:
            server.client.flushall()

    def stop(self) -> None:
        """End all processes."""
        for server in self.servers:
            server.stop()


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
        return SentinelGroup(self.folder / "sentinel")

    @cached_property
    def cluster(self) -> ClusterGroup:
        """A Cluster; do not kill anything in it."""
        return ClusterGroup(self.folder / "cluster")

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
        for server in tuple(_running):
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def shared() -> SharedServers:
    """The servers of this run; they end with it."""
    servers = SharedServers()
    atexit.register(servers.stop)
    return servers


def _replicas_online(server: RedisServer) -> int:
    info = server.client.info("replication")
    states = (value for name, value in info.items() if name.startswith("slave"))
    return sum(isinstance(state, dict) and state["state"] == "online" for state in states)


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


_running: list[RedisServer] = []

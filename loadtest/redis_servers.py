"""
Runs real redis-servers on free loopback ports: a single server, Sentinels or a Cluster.

    with TemporaryDirectory() as folder:
        server = RedisServer(Path(folder)).start()
        server.url       # redis://127.0.0.1:40123
        server.stop()
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import redis

from deploy.demo import programs
from sidecar.stores.redis.keys import KeySpace

Fact = TypeVar("Fact")

LOOPBACK = "127.0.0.1"
SERVICE = "main"
SLOTS = 16_384
QUICK_REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")

DOWN_AFTER_MS, NODE_TIMEOUT_MS = 300, 600
"""Short times for tests: on a machine that stalls for longer, healthy primaries are replaced."""
START_S = 60.0
MEET_INTERVAL_S = 3.0
"""Longer than a handshake of Cluster nodes may take, which Redis gives up after a second."""
TICK_S = 0.01
PORT_ATTEMPTS = 8


class RedisServerError(Exception):
    """redis-server is missing, does not start, or does not reach a state in time."""


def server_program() -> str:
    """
    Return the path of redis-server.

    Raises:
        RedisServerError: it is not installed; the message says how to install it.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise RedisServerError("redis-server 6.2 or newer is missing: apt-get install redis-server")
    return program


def free_port() -> int:
    """Return a free port whose Cluster bus port (+ 10,000) is free, too; see `programs.free_port`."""
    return programs.free_port(10_000)


class RedisServer:
    """
    One redis-server process on loopback.

    *options* are command-line options, which override the defaults. `port` is the plain-text port, 0 = only
    the ports in *options*.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int | None = None,
        find_port: Callable[[], int] = free_port,
    ) -> None:
        """Create *folder*; *port* None = any port that *find_port* returns."""
        self.folder = folder
        self.port = 0 if port is None else port
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self._picks_port = port is None
        self._find_port = find_port
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> Self:
        """
        Start the process and wait until it accepts connections.

        If another process takes the free port or the Cluster bus port first, `start` tries another port.

        Raises:
            RedisServerError: it does not start; the message has the end of its log.
        """
        for _ in range(PORT_ATTEMPTS):
            if self._picks_port:
                self.port = self._find_port()
            self._run()
            if await_fact(lambda: self._is_up() or self._has_ended(), str(self.folder)) == "up":
                self._picks_port = False
                return self
            self._reap()
        raise RedisServerError(f"redis-server in {self.folder} does not start: {self._log()}")

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
        # Its own log, not its port: another process may listen there, or the Cluster bus port be taken.
        return "up" if "eady to accept connections" in self._log() else ""

    def _has_ended(self) -> str:
        assert self.process is not None
        return "" if self.process.poll() is None else "ended"

    def _log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace")[-2_000:] if path.exists() else ""

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"redis://{LOOPBACK}:{self.port}"

    @cached_property
    def client(self) -> Any:
        """A separate client for tests to read and change data."""
        return redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=START_S)

    def cpu_s(self) -> float:
        """Return the processor time that the server has used, user and system."""
        info = self.client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def kill(self) -> None:
        """Kill the process (SIGKILL), like a power failure."""
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """Terminate the process (SIGTERM), even if frozen."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        self._reap()

    def freeze(self) -> None:
        """Pause the process (SIGSTOP): connections stay open without answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process (SIGCONT)."""
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
    """One Sentinel process that monitors the service 'main'."""

    def __init__(self, folder: Path, primary_port: int, down_after_ms: int = DOWN_AFTER_MS) -> None:
        """Monitor the primary on *primary_port*, with a quorum of two after *down_after_ms* of silence."""
        super().__init__(folder)
        self._config = folder / "sentinel.conf"
        self._config.write_text(
            f"sentinel monitor {SERVICE} {LOOPBACK} {primary_port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )

    def _command(self) -> tuple[str, ...]:
        return (server_program(), str(self._config), "--sentinel")

    def _is_up(self) -> str:
        # A Sentinel logs its id once it listens.
        return "up" if "Sentinel ID is" in self._log() else ""


@contextlib.contextmanager
def _stopping_all_on_error() -> Iterator[None]:
    """Stop the servers that the block started if it raises: a later attempt needs their folders."""
    before = tuple(_running)
    try:
        yield
    except BaseException:
        for server in tuple(_running):
            if server not in before:
                server.stop()
        raise


class SentinelGroup:
    """One primary, two replicas, three Sentinels."""

    @_stopping_all_on_error()
    def __init__(self, folder: Path, down_after_ms: int = DOWN_AFTER_MS) -> None:
        """Start the six processes and wait until the Sentinels know all; see `SentinelServer`."""
        first = RedisServer(folder / "data0", *QUICK_REPLICATION).start()
        replica_of = ("--replicaof", f"{LOOPBACK} {first.port}", *QUICK_REPLICATION)
        self.servers = [first, *(RedisServer(folder / f"data{i}", *replica_of).start() for i in (1, 2))]
        await_fact(lambda: _replicas_online(first) == 2, "replicas online")
        self.sentinels = [
            SentinelServer(folder / f"sentinel{i}", first.port, down_after_ms).start() for i in range(3)
        ]
        await_fact(lambda: all(map(self._is_complete, self.sentinels)), "Sentinels know each other")

    @staticmethod
    def _is_complete(sentinel: SentinelServer) -> bool:
        [master] = sentinel.client.sentinel_masters().values()
        return bool(master["num-slaves"] >= 2 and master["num-other-sentinels"] >= 2)

    @property
    def epoch(self) -> int:
        """The configuration epoch, which increases with each failover."""
        [master] = self.sentinels[0].client.sentinel_masters().values()
        return int(master["config-epoch"])

    @property
    def url(self) -> str:
        """The URL of the Sentinels."""
        hosts = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    @property
    def primary(self) -> RedisServer:
        """The primary that the first Sentinel names."""
        return self._named_by(self.sentinels[0])

    def successor(self, failed: RedisServer) -> RedisServer | None:
        """Return the primary in place of *failed* after all Sentinels have named it; None = not yet."""
        named = {self._named_by(sentinel) for sentinel in self.sentinels}
        return named.pop() if len(named) == 1 and failed not in named else None

    def fail_over(self) -> None:
        """Have the Sentinels replace the primary (SENTINEL FAILOVER); ask again until one accepts."""
        await_fact(self._accepts_failover, "the Sentinels start a failover")

    def restart(self, server: RedisServer) -> None:
        """Start a killed *server* again, as a replica of the primary."""
        server.options = ("--replicaof", f"{LOOPBACK} {self.primary.port}", *QUICK_REPLICATION)
        server.start()

    def _named_by(self, sentinel: SentinelServer) -> RedisServer:
        _, port = sentinel.client.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def _accepts_failover(self) -> bool:
        try:
            self.sentinels[0].client.execute_command("SENTINEL FAILOVER", SERVICE)
        except redis.ResponseError:  # INPROG, NOGOODSLAVE
            return False
        return True

    def stop(self) -> None:
        """Terminate all processes."""
        for server in (*self.sentinels, *self.servers):
            server.stop()


class ClusterGroup:
    """Three primaries with equal shares of the slots and a replica each."""

    @_stopping_all_on_error()
    def __init__(self, folder: Path, node_timeout_ms: int = NODE_TIMEOUT_MS) -> None:
        """Start the six processes and join them; a primary is replaced after *node_timeout_ms* of silence."""
        folder = Path(tempfile.mkdtemp(dir=_created(folder)))  # of a former attempt it would keep the members
        timeout = ("--cluster-node-timeout", str(node_timeout_ms))
        options = ("--cluster-enabled", "yes", *timeout, *QUICK_REPLICATION)
        self.servers = [RedisServer(folder / f"node{i}", *options).start() for i in range(6)]
        primaries, replicas = self.servers[:3], self.servers[3:]
        for index, primary in enumerate(primaries):
            first, end = (SLOTS * part // 3 for part in (index, index + 1))
            primary.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            primary.client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        self._met_at_s = -MEET_INTERVAL_S
        await_fact(self._have_met, "nodes have met")
        for primary, replica in zip(primaries, replicas, strict=True):
            node_id = primary.client.execute_command("CLUSTER MYID")
            replica.client.execute_command("CLUSTER REPLICATE", node_id)
        await_fact(lambda: all(map(self._is_whole, self.servers)), "the Cluster is whole")
        await_fact(lambda: all(_replicas_online(primary) for primary in primaries), "replicas")

    def _have_met(self) -> bool:
        """Whether every node knows all; introduce them again in case a handshake timed out."""
        if all(self._knows(server, len(self.servers)) for server in self.servers):
            return True
        now_s = time.monotonic()
        if now_s >= self._met_at_s + MEET_INTERVAL_S:
            self._met_at_s = now_s
            for server in self.servers[1:]:
                server.client.execute_command("CLUSTER MEET", LOOPBACK, self.servers[0].port)
        return False

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
        """The URL of the Cluster."""
        return f"redis+cluster://{','.join(f'{LOOPBACK}:{server.port}' for server in self.servers[:3])}"

    @property
    def epoch(self) -> int:
        """The current epoch of the first running node, which increases with each failover."""
        running = next(
            server for server in self.servers if server.process is not None and server.process.poll() is None
        )
        return int(running.client.execute_command("CLUSTER INFO")["cluster_current_epoch"])

    def primary_of(self, slot: int) -> RedisServer:
        """Return the primary of *slot*, according to the running nodes."""
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                for first, last, owner, *_ in server.client.execute_command("CLUSTER SLOTS"):
                    if first <= slot <= last:
                        return next(server for server in self.servers if server.port == owner[1])
        raise RedisServerError(f"no running node serves slot {slot}")

    @property
    def primary(self) -> RedisServer:
        """The primary of a sidecar's first partition."""
        return self.primary_of(KeySpace().slot_of(0))

    def successor(self, failed: RedisServer) -> RedisServer | None:
        """Return the primary of the first partition in place of *failed*; None = not yet."""
        try:
            owner = self.primary
        except (redis.RedisError, RedisServerError):
            return None
        return None if owner is failed else owner

    def restart(self, server: RedisServer) -> None:
        """Start a killed *server* again; it is a replica if it was replaced."""
        server.start()

    def flush(self) -> None:
        """Delete all keys."""
        for server in self.servers[:3]:
            server.client.flushall()

    def stop(self) -> None:
        """Terminate all processes."""
        for server in self.servers:
            server.stop()


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _replicas_online(server: RedisServer) -> int:
    info = server.client.info("replication")
    states = (value for name, value in info.items() if name.startswith("slave"))
    return sum(isinstance(state, dict) and state["state"] == "online" for state in states)


def await_fact(fact: Callable[[], Fact], what: str) -> Fact:
    """
    Call *fact* until it returns a true value, and return the value.

    Raises:
        RedisServerError: no true value within `START_S`.
    """
    never, deadline_s = threading.Event(), time.monotonic() + START_S
    while True:
        found = fact()
        if found:
            return found
        if time.monotonic() >= deadline_s:
            raise RedisServerError(f"not within {START_S:g} s: {what}")
        never.wait(TICK_S)


_running: list[RedisServer] = []


def stop_all() -> None:
    """Terminate all running servers of this process."""
    for server in tuple(_running):
        server.stop()

"""The two sides of the Redis benchmark, Sidecar and the baseline, and the cost of a load."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.demo.programs import Program
from loadtest.bench.decisions import allowed, confirm_allowed
from loadtest.bench.processes import (
    SERVER_CORE,
    START_TIMEOUT_S,
    BenchError,
    RunningSidecar,
    free_port,
    running_sidecar,
)
from loadtest.bench.replay import Replayed
from loadtest.bench.workload import Place, beside, check_request
from loadtest.redis_servers import LOOPBACK, SLOTS, RedisServer


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of a side and its Redis servers at one time."""

    cpu_s: float
    redis_cpu_s: float
    redis_commands: int
    script_calls: int
    allowed: float
    takes: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The result of one load, *replayed*, and its cost per decision."""

    replayed: Replayed
    cpu_us: float
    redis_cpu_us: float
    redis_commands: float
    script_calls: float

    @property
    def busy(self) -> float:
        """The side's use of its core during the load."""
        return self.cpu_us * self.replayed.calls_per_s / 1e6

    @property
    def load_core_busy(self) -> float:
        """The use of the load's core by the load generator and Redis together."""
        return self.replayed.load_busy + self.redis_cpu_us * self.replayed.calls_per_s / 1e6


@dataclass(frozen=True, slots=True)
class Side:
    """A running decision service and the Redis primaries behind it."""

    process: RunningSidecar
    servers: Sequence[RedisServer]
    is_ours: bool

    def refill(self) -> None:
        """Delete all buckets, so that they are full and no load reaches a limit."""
        for server in self.servers:
            server.client.flushall()

    def read(self) -> Reading:
        """Read all counters."""
        infos = [server.client.info("everything") for server in self.servers]
        return Reading(
            self.process.cpu_s(),
            sum(info["used_cpu_user"] + info["used_cpu_sys"] for info in infos),
            sum(info["total_commands_processed"] for info in infos),
            sum(info.get("cmdstat_evalsha", {"calls": 0})["calls"] for info in infos),
            allowed(self.process) if self.is_ours else 0.0,
            self.process.metric("sidecar_store_takes_total ") if self.is_ours else 0.0,
        )

    def cost(self, replayed: Replayed, before: Reading, after: Reading) -> Cost:
        """
        Return the cost of *replayed* between the two readings.

        Raises:
            BenchError: the counters do not match the number of decisions.
        """
        calls = replayed.calls
        scripts = after.script_calls - before.script_calls
        if self.is_ours and after.allowed - before.allowed != calls - replayed.late:
            raise BenchError("some calls were neither late nor allowed")
        if self.is_ours and not calls - replayed.late <= after.takes - before.takes <= calls:
            raise BenchError("not every decision took its token from Redis")
        if not self.is_ours and scripts != calls:
            raise BenchError(f"the baseline called its script {scripts} times for {calls} decisions")
        return Cost(
            replayed,
            (after.cpu_s - before.cpu_s) * 1e6 / calls,
            (after.redis_cpu_s - before.redis_cpu_s) * 1e6 / calls,
            (after.redis_commands - before.redis_commands) / calls,
            scripts / calls,
        )


@contextmanager
def sidecar_side(
    place: Place, name: str, url: str, servers: Sequence[RedisServer], workers: int = 1
) -> Iterator[Side]:
    """Run Sidecar with the registry of *place* and buckets at *url*, with one core per worker."""
    grpc_at, admin = f"{LOOPBACK}:{free_port()}", f"{LOOPBACK}:{free_port()}"
    here = beside(place, f"{name}.yaml", grpc_at, admin, store=url, workers=workers)
    cores = str(SERVER_CORE) if workers == 1 else f"{SERVER_CORE}-{SERVER_CORE + workers - 1}"
    with running_sidecar(here.config, grpc_at, admin, cores) as process:
        confirm_allowed(here, check_request(place.keys[0].api_key))
        yield Side(process, servers, is_ours=True)


@contextmanager
def running_baseline(module: str, place: Place, redis_url: str) -> Iterator[RunningSidecar]:
    """
    Run *module* of `loadtest.baselines` with the registry of *place*, on the server's core.

    Raises:
        ProgramError: it does not listen in time; the message has its output.
    """
    listen = f"{LOOPBACK}:{free_port()}"
    command = [
        *("taskset", "-c", str(SERVER_CORE), sys.executable, "-m", f"loadtest.baselines.{module}"),
        *("--listen", listen, "--redis", redis_url, "--config", str(place.config)),
    ]
    with Program(module, command, place.config.parent) as program:
        program.wait_for(lambda: _listens(listen), "listening")
        yield RunningSidecar(program.pid, listen, "")


def _listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, int(address.rpartition(":")[2]))) == 0


@contextmanager
def baseline_side(place: Place, server: RedisServer) -> Iterator[Side]:
    """Run the baseline for gRPC with the registry of *place*."""
    with running_baseline("evalsha_sidecar", place, server.url) as process:
        # The first call loads the script into Redis.
        confirm_allowed(replace(place, grpc=process.grpc), check_request(place.keys[0].api_key))
        yield Side(process, (server,), is_ours=False)


@contextmanager
def standalone(folder: Path) -> Iterator[RedisServer]:
    """Run a Redis server without persistence in *folder*."""
    server = RedisServer(folder).start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def cluster(folder: Path, primaries: int) -> Iterator[list[RedisServer]]:
    """
    Run a Redis Cluster of *primaries* with equal shares of the slots, without replicas.

    Raises:
        BenchError: the Cluster is not complete in time.
    """
    servers: list[RedisServer] = []
    try:
        for index in range(primaries):
            server = RedisServer(folder / f"node{index}", "--cluster-enabled", "yes").start()
            servers.append(server)
            first, end = (SLOTS * part // primaries for part in (index, index + 1))
            server.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            server.client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
            server.client.execute_command("CLUSTER MEET", LOOPBACK, servers[0].port)
        _await_whole(servers)
        yield servers
    finally:
        for server in servers:
            server.stop()


def _await_whole(servers: Sequence[RedisServer]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        infos = [server.client.execute_command("CLUSTER INFO") for server in servers]
        if all(i["cluster_state"] == "ok" and i["cluster_slots_ok"] == str(SLOTS) for i in infos):
            return
        time.sleep(0.05)
    raise BenchError(f"the Cluster of {len(servers)} primaries is not complete after {START_TIMEOUT_S:g} s")

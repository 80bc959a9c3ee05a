"""
Drives other rate limiters through one scenario beside the sidecar: the same cores, in rounds, in turn.

A peer is a program that its user has: on PATH, or given by its path. The settings are those with which each
did best on this project's machine; nothing is built or shipped here.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from deploy.demo.programs import Program
from loadtest.bench.processes import free_port
from loadtest.driver.targets import parse_target
from loadtest.harness.plots import short
from loadtest.harness.run import drive
from loadtest.harness.scenario import Scenario, ScenarioError
from loadtest.harness.stage import LOOPBACK, Stage, split_cores, staged
from loadtest.harness.workload import make_keys
from loadtest.redis_servers import RedisServer

RATE, SERVER_CPU, REDIS_CPU = "calls per second", "server, µs per call", "Redis, µs per call"
ALONE_P50, ALONE_P99, MEMORY = "one at a time, p50 µs", "one at a time, p99 µs", "memory, MB"
WAITED = "waited for a core, %"
FIGURES = (RATE, SERVER_CPU, REDIS_CPU, ALONE_P50, ALONE_P99, MEMORY, WAITED)
HEADERS_OFF = {"headers": False, "exclusive": False, "unanswered_share_max": 1.0}

Rounds = dict[str, dict[str, list[float]]]
"""Figures of every round, by figure and server."""


@dataclass(frozen=True)
class Launch:
    """How a peer is run: its command after the program, and its environment."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Peer:
    """One way to run a program; `needs_redis` = its counters are in Redis."""

    name: str
    program: str
    needs_redis: bool
    launch: Callable[[Scenario, Path, int, str], Launch]
    """Gets the scenario, a folder for files, the port for gRPC and the URL of Redis."""


def _ratelimit(scenario: Scenario, folder: Path, port: int, redis: str) -> Launch:
    files = folder / "runtime" / "limits" / "config"
    files.mkdir(parents=True)
    rate = {"unit": scenario.limits.unit, "requests_per_unit": scenario.limits.rpm}
    rules = {"domain": "shop", "descriptors": [{"key": "user", "rate_limit": rate}]}
    (files / "shop.yaml").write_text(yaml.safe_dump(rules))
    environment = {
        "USE_STATSD": "false",
        "LOG_LEVEL": "error",
        "RUNTIME_ROOT": str(folder / "runtime"),
        "RUNTIME_SUBDIRECTORY": "limits",
        "RUNTIME_WATCH_ROOT": "false",
        "REDIS_SOCKET_TYPE": "tcp",
        "REDIS_URL": redis.removeprefix("redis://"),
        "REDIS_POOL_SIZE": "10",
        "LOCAL_CACHE_SIZE_IN_BYTES": "0",
        "HOST": LOOPBACK,
        "PORT": str(free_port()),
        "DEBUG_HOST": LOOPBACK,
        "DEBUG_PORT": str(free_port()),
        "GRPC_HOST": LOOPBACK,
        "GRPC_PORT": str(port),
        "GOMAXPROCS": "1",
    }
    return Launch((), environment)


def _limitador(*storage: str) -> Callable[[Scenario, Path, int, str], Launch]:
    def launch(scenario: Scenario, folder: Path, port: int, redis: str) -> Launch:
        limits = folder / "limits.yaml"
        limit = {
            "namespace": "shop",
            "max_value": scenario.limits.rpm,
            "seconds": scenario.limits.unit_s,
            "conditions": [],
            "variables": ["descriptors[0]['user']"] if scenario.traffic.integrations > 1 else [],
        }
        limits.write_text(yaml.safe_dump([limit]))
        addresses = ("-b", LOOPBACK, "-p", str(port), "-B", LOOPBACK, "-P", str(free_port()))
        store = [*storage, redis] if storage[0] != "memory" else storage
        return Launch((*addresses, str(limits), *store), {"TOKIO_WORKER_THREADS": "1", "RUST_LOG": "error"})

    return launch


PEERS = (
    Peer("ratelimit", "ratelimit", True, _ratelimit),
    Peer("limitador, memory", "limitador-server", False, _limitador("memory")),
    Peer("limitador, redis", "limitador-server", True, _limitador("redis")),
    Peer("limitador, redis_cached", "limitador-server", True, _limitador("redis_cached")),
)


def find_programs(given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """
    Return the path of each peer's program, and what is missing.

    *given* are `NAME=PATH`; a name that is not given is looked for on PATH.

    Raises:
        ScenarioError: a name or a path of *given* is wrong.
    """
    names = sorted({peer.program for peer in PEERS})
    paths = {}
    for item in given:
        name, _, path = item.partition("=")
        if name not in names or not os.access(path, os.X_OK):
            raise ScenarioError(
                f"--peer is {item!r}; it must be NAME=PATH of an executable file;"
                f" names are {', '.join(names)}"
            )
        paths[name] = path
    found = {name: paths.get(name) or shutil.which(name) or "" for name in names}
    missing = [f"{name} is not on PATH: give it with --peer {name}=PATH" for name in names if not found[name]]
    return {name: path for name, path in found.items() if path}, missing


@contextmanager
def staged_peer(peer: Peer, program: str, scenario: Scenario, folder: Path) -> Iterator[Stage]:
    """
    Yield a running *peer*, which listens for gRPC.

    Raises:
        ProgramError: the program ended or does not listen in time; the message has its output.
    """
    port = free_port()
    place = folder / f"{peer.program}-{port}"
    place.mkdir()
    with ExitStack() as stack:
        redis = None
        if peer.needs_redis:
            redis = RedisServer(place / "redis").start()
            stack.callback(redis.stop)
        launch = peer.launch(scenario, place, port, redis.url if redis is not None else "")
        cores = ",".join(map(str, split_cores()[0]))
        command = ["taskset", "-c", cores, program, *launch.arguments]
        running = stack.enter_context(Program(peer.name, command, place, launch.environment))
        running.wait_for(lambda: _listens(port), "listening")
        groups = {"server": [running.pid]}
        if redis is not None and redis.process is not None:
            groups["redis"] = [redis.process.pid]
        yield Stage([parse_target(f"grpc://{LOOPBACK}:{port}")], make_keys(scenario), lambda: groups)


def measure(
    scenario: Scenario,
    programs: Mapping[str, str],
    folder: Path,
    rounds: int,
    seconds: float,
    tell: Callable[[str], None],
) -> tuple[Rounds, list[str]]:
    """
    Return every round's figures of the sidecar and of the peers in *programs*, and what was wrong.

    All servers run during all rounds; the order is reversed each round.
    """
    found: Rounds = {figure: {} for figure in FIGURES}
    wrong: dict[str, None] = {}
    with ExitStack() as stack:
        stages: dict[str, tuple[Scenario, Stage]] = {}
        for name, changes in _sidecars(scenario).items():
            own = Scenario(**{**scenario.model_dump(), **changes})
            stages[name] = own, stack.enter_context(staged(own))
        relaxed = Scenario(**{**scenario.model_dump(), "oracle": HEADERS_OFF})
        for peer in PEERS:
            if peer.program in programs:
                staged_one = staged_peer(peer, programs[peer.program], relaxed, folder)
                stages[peer.name] = relaxed, stack.enter_context(staged_one)
        for number in range(rounds):
            for name in list(stages)[:: 1 if number % 2 == 0 else -1]:
                tell(f"round {number + 1} of {rounds}: {name}")
                for what in _measure_one(name, *stages[name], seconds, found):
                    wrong[f"{name}: {what}"] = None
    return found, list(wrong)


def _sidecars(scenario: Scenario) -> dict[str, dict[str, Any]]:
    relaxed = {**scenario.oracle.model_dump(), "exclusive": False}
    checked = {"protocol": "ext_authz", "limits": {"rpm": 10_000, "burst": 1_000_000}, "oracle": relaxed}
    own = {"oracle": relaxed}
    redis = {"sidecar": {**scenario.sidecar.model_dump(), "store": "redis"}}
    return {
        "sidecar, embedded": own,
        "sidecar, redis": {**own, **redis},
        "sidecar, embedded, whole decision": checked,
        "sidecar, redis, whole decision": {**checked, **redis},
    }


def _measure_one(name: str, scenario: Scenario, stage: Stage, seconds: float, found: Rounds) -> Iterator[str]:
    """Add one round of one server: as fast as it answers, then one call at a time; yield what was wrong."""

    def run(connections: int, streams: int) -> dict[str, Any]:
        settings = scenario.model_dump()
        settings["load"] |= {"loop": "closed", "duration_s": seconds, "warm_up_s": 0.0}
        settings["connections"] |= {"connections": connections, "streams": streams}
        return drive(Scenario(**settings), stage, driver_cores=split_cores()[1])

    full = run(scenario.connections.connections, scenario.connections.streams)
    alone = run(1, 1)
    server = full["usage"].get("server") or full["usage"]["sidecar"]
    figures = {RATE: full["calls_per_s"], SERVER_CPU: server["cpu_us_per_call"], MEMORY: server["rss_mb_max"]}
    figures[WAITED] = 100 * server["waited_share"]
    if "redis" in full["usage"]:
        figures[REDIS_CPU] = full["usage"]["redis"]["cpu_us_per_call"]
    figures |= {ALONE_P50: alone["latency_us"]["p50"], ALONE_P99: alone["latency_us"]["p99"]}
    for figure, value in figures.items():
        found[figure].setdefault(name, []).append(value)
    for result in (full, alone):
        yield from (fault["what"] for fault in result["verdict"]["faults"])
    if full["driver"]["is_limit"]:
        yield f"the driver was the limit: {full['driver']['why']}"


def table(rounds: Rounds) -> list[tuple[str, ...]]:
    """Return a table's head and rows: the median of each figure, by server."""
    servers = list(dict.fromkeys(server for by_server in rounds.values() for server in by_server))
    rows: list[tuple[str, ...]] = [("server", *FIGURES)]
    for server in servers:
        medians = [median(rounds[figure][server]) if server in rounds[figure] else None for figure in FIGURES]
        rows.append((server, *("–" if value is None else short(value) for value in medians)))
    return rows


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0

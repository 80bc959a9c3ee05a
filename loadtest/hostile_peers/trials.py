"""Trials: measures a real sidecar's decisions, and an administrator's calls, during an attack."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
import urllib.request
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import yaml

from loadtest.bench.admin_calls import AdminCalls
from loadtest.bench.processes import (
    LOAD_CORE,
    SERVER_CORE,
    BenchError,
    RunningSidecar,
    free_port,
    running_sidecar,
)
from loadtest.bench.replay import Manner, Run, replay
from loadtest.bench.workload import BURST, CHECK, check_request
from loadtest.hostile_peers.peers import KINDS, attacking
from sidecar.domain.api_keys import NewApiKey, generate_api_key
from sidecar.process.settings import DECIDING_KINDS
from sidecar.services.ext_authz_client import read_response
from sidecar.verify.callers import ask

RATE_PER_S = 5_000.0
CONNECTIONS = 4
WARM_UP_S = 0.3
SAMPLE_S = 0.05
ANSWER_TIMEOUT_S = 5.0
"""Maximum time until a suspension is effective, and for a scrape."""
RATIO_MAX = 1.2
GROWTH_MAX_BYTES = 64 << 20
GRPC_GROWTH_MAX_BYTES = 128 << 20
"""Unread answers may take 64 MiB in total (`limits.unsent_bytes_max`), in addition to the calls."""


@dataclass(frozen=True, slots=True)
class PeerRound:
    """
    One round with a peer. An infinite time = it never happened.

    `decoy_p99_us` is the decisions' p99 while the same peer attacked another sidecar.
    """

    decoy_p99_us: float
    p99_us: float
    growth_bytes: int
    suspended_s: float
    scraped_s: float

    @property
    def ratio(self) -> float:
        """The decisions' p99 during the attack relative to the attack on the decoy."""
        return self.p99_us / self.decoy_p99_us


@dataclass(frozen=True, slots=True)
class PeerTrial:
    """All rounds with one kind of peer at one listener."""

    listener: str
    kind: str
    rounds: tuple[PeerRound, ...]

    @property
    def ratio(self) -> float:
        """The median ratio of all rounds."""
        return median(result.ratio for result in self.rounds)

    @property
    def growth_bytes(self) -> int:
        """The largest growth of memory."""
        return max(result.growth_bytes for result in self.rounds)

    @property
    def suspended_s(self) -> float:
        """The longest time from an administrator's suspension to its effect."""
        return max(result.suspended_s for result in self.rounds)

    @property
    def scraped_s(self) -> float:
        """The longest time of a scrape of the metrics."""
        return max(result.scraped_s for result in self.rounds)

    @property
    def is_safe(self) -> bool:
        """Whether memory stayed within its limit and no administrator was locked out."""
        growth_max_bytes = GRPC_GROWTH_MAX_BYTES if self.listener == "grpc" else GROWTH_MAX_BYTES
        return self.growth_bytes <= growth_max_bytes and self.suspended_s < ANSWER_TIMEOUT_S

    @property
    def is_kept(self) -> bool:
        """
        Whether decisions also stayed as fast as promised.

        Peers of a deciding listener share it fairly with the proxies, and thereby take time from them.
        """
        return self.is_safe and (self.listener in DECIDING_KINDS or self.ratio <= RATIO_MAX)


class AttackedSidecar:
    """A sidecar with an integration to suspend for each round; see the two subclasses."""

    attacked: Sequence[str]
    """The attacked listeners; the first one serves HTTP with metrics."""
    load_core = LOAD_CORE
    manner = Manner.EQUAL

    def __init__(self, folder: Path, targets: int) -> None:
        """Generate keys and addresses; `running` starts the sidecar."""
        self.folder = folder
        self.hot = generate_api_key()
        self.targets = [generate_api_key() for _ in range(targets)]
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in {"grpc", "admin", *self.attacked}}
        self._suspended = 0

    def records(self) -> list[dict[str, Any]]:
        """Return the integrations, in the form of registry files and the admin API."""
        hot = {**_record("hot", self.hot), "rate_limit_rpm": 10_000, "burst": BURST}
        return [hot, *(_record(f"target-{number}", key) for number, key in enumerate(self.targets))]

    def write_config(self, registry: str) -> Path:
        """Write the configuration of the sidecar; return its path."""
        config = self.folder / "sidecar.yaml"
        settings = {
            "listen": self.addresses,
            "client_ip": {"header": "x-client-ip"},
            "registry": registry,
            "routes": [{"methods": ["GET"], "path": "/v1/orders/{id}", "scope": "orders:read"}],
        }
        config.write_text(yaml.safe_dump(settings))
        return config

    @contextmanager
    def running(self) -> Iterator[RunningSidecar]:
        """Run the sidecar until the block ends; it is ready to decide."""
        raise NotImplementedError

    def suspend(self, number: int) -> None:
        """Suspend target *number*, as an administrator does."""
        raise NotImplementedError

    def time_suspension(self) -> float:
        """
        Suspend the next target; return the seconds until its requests are denied, `inf` = too long.

        Each decision uses a new connection, like a proxy that has just started.
        """
        number, self._suspended = self._suspended, self._suspended + 1
        message = check_request(self.targets[number].api_key)
        began_s = monotonic()
        try:
            self.suspend(number)
            while monotonic() < began_s + ANSWER_TIMEOUT_S:
                answer = asyncio.run(ask(self.addresses["grpc"], message, ANSWER_TIMEOUT_S))
                if answer and not read_response(answer).is_allowed:
                    return monotonic() - began_s
        except (OSError, BenchError, http.client.HTTPException):
            pass
        return inf

    def p99_us(self, calls: int) -> float:
        """Return the p99 latency of *calls* decisions from their scheduled times; infinite without calls."""
        if not calls:
            return inf
        target = self.addresses["grpc"]
        run = Run(target, CHECK, calls, CONNECTIONS, 0, RATE_PER_S, WARM_UP_S, self.manner)
        message = check_request(self.hot.api_key)
        return replay(self.folder, run, [message], array("I", [0]), self.load_core).typical_us["0.99"]


class SidecarWithFile(AttackedSidecar):
    """A registry file, and a metrics listener on the event loop that decides."""

    attacked = ("metrics", "http", "grpc")

    @contextmanager
    def running(self) -> Iterator[RunningSidecar]:
        """See `AttackedSidecar.running`."""
        self._write(suspended=-1)
        config = self.write_config("registry.yaml")
        with running_sidecar(config, self.addresses["grpc"], self.addresses["metrics"]) as sidecar:
            yield sidecar

    def suspend(self, number: int) -> None:
        """Write the suspension to the file."""
        self._write(suspended=number)

    def _write(self, suspended: int) -> None:
        records = self.records()
        for record in records[1 : suspended + 2]:
            record["status"] = "suspended"
        staged = self.folder / "staged.yaml"
        staged.write_text(yaml.safe_dump({"integrations": records}))
        staged.rename(self.folder / "registry.yaml")


class SidecarWithAdminApi(AttackedSidecar):
    """
    A SQLite registry with the admin API, which the supervisor serves.

    The supervisor shares its core with the peer, and the deciding worker shares the other core with the load
    of decisions, because the promise is not about the supervisor's speed.
    """

    attacked = ("admin",)
    load_core = SERVER_CORE
    manner = Manner.LAST

    @contextmanager
    def running(self) -> Iterator[RunningSidecar]:
        """See `AttackedSidecar.running`."""
        config = self.write_config("sqlite:registry.sqlite")
        command = [sys.executable, "-m", "sidecar.cli", "admin", "bootstrap", "--id", "prover"]
        made = subprocess.run(
            [*command, "--config", str(config)], capture_output=True, text=True, check=True, timeout=60
        )
        self._token = made.stdout.strip()
        with running_sidecar(config, self.addresses["grpc"], self.addresses["admin"]) as sidecar:
            moved = ["taskset", "-acp", str(LOAD_CORE), str(sidecar.pid)]
            subprocess.run(moved, check=True, capture_output=True, timeout=10)
            self._create()
            yield sidecar

    def _create(self) -> None:
        changes = [
            {"action": "integration.create", "integration_id": record.pop("id"), **record}
            for record in self.records()
        ]
        calls = AdminCalls(self.addresses["admin"], self._token)
        answer = calls.call("POST", "/changes", {"changes": changes})
        calls.close()
        refused = [result for result in answer["results"] if result["status"] != 201]
        if refused:
            raise BenchError(f"an integration was not created: {refused[0]}")

    def suspend(self, number: int) -> None:
        """Call the admin API on a new connection."""
        connection = http.client.HTTPConnection(self.addresses["admin"], timeout=ANSWER_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        body = json.dumps({"reason": "trial"})
        connection.request("POST", f"/v1/integrations/target-{number}/suspend", body, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status != 200:
            raise BenchError(f"the suspension was answered {response.status}: {answer[:500].decode()}")


SIDECARS: tuple[type[AttackedSidecar], ...] = (SidecarWithFile, SidecarWithAdminApi)


def run_trials(
    sidecar_type: type[AttackedSidecar], folder: Path, kinds: Sequence[str], rounds: int, calls: int
) -> list[PeerTrial]:
    """
    Run *rounds* rounds with each of *kinds* that attack one of its listeners; *calls* decisions each.

    0 calls = judge safety alone: no decisions are measured, and nothing is pinned to a core.

    Raises:
        BenchError: a decision was not answered, or the trials could not run.
    """
    attacks = [
        (listener, kind)
        for listener in sidecar_type.attacked
        for kind in kinds
        if listener in KINDS[kind].listeners
    ]
    attacked = sidecar_type(folder, len(attacks) * rounds)
    core = LOAD_CORE if calls else None
    with attacked.running() as process, ExitStack() as undo:
        decoy = undo.enter_context(_decoy(sidecar_type, folder)) if calls else None
        attacked.p99_us(calls)  # warm
        base_bytes = process.rss_bytes()
        held: dict[tuple[str, str], list[PeerRound]] = {attack: [] for attack in attacks}
        for number in range(rounds):
            for listener, kind in attacks:
                print(f"round {number + 1}: {listener}, {KINDS[kind].text}", file=sys.stderr, flush=True)
                decoy_p99_us = inf
                if decoy is not None:
                    with attacking(kind, decoy.addresses[listener], core):
                        decoy_p99_us = attacked.p99_us(calls)
                with _sampled(process) as samples, attacking(kind, attacked.addresses[listener], core):
                    p99_us = attacked.p99_us(calls)
                    suspended_s = attacked.time_suspension()
                    scraped_s = _time_scrape(attacked.addresses[attacked.attacked[0]])
                growth_bytes = max(samples) - base_bytes
                held[listener, kind].append(
                    PeerRound(decoy_p99_us, p99_us, growth_bytes, suspended_s, scraped_s)
                )
    return [PeerTrial(listener, kind, tuple(results)) for (listener, kind), results in held.items()]


@contextmanager
def _decoy(sidecar_type: type[AttackedSidecar], folder: Path) -> Iterator[AttackedSidecar]:
    """
    Run a second sidecar on the peer's core, with idle priority.

    A peer takes machine time with its connections and bytes, whatever it attacks. The comparison with an
    attack on the decoy excludes this time.
    """
    (folder / "decoy").mkdir()
    decoy = sidecar_type(folder / "decoy", 0)
    with decoy.running() as process:
        for pid in process.pids():
            for command in (["taskset", "-acp", str(LOAD_CORE)], ["chrt", "-a", "-i", "-p", "0"]):
                subprocess.run([*command, str(pid)], check=True, capture_output=True, timeout=10)
        yield decoy


@contextmanager
def _sampled(sidecar: RunningSidecar) -> Iterator[list[int]]:
    """Sample the memory of all processes of *sidecar* while the block runs."""
    samples = [sidecar.rss_bytes()]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_S):
            samples.append(sidecar.rss_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


def _time_scrape(address: str) -> float:
    began_s = monotonic()
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=ANSWER_TIMEOUT_S) as response:
            response.read()
    except (OSError, http.client.HTTPException):
        return inf
    return monotonic() - began_s


def _record(integration_id: str, key: NewApiKey) -> dict[str, Any]:
    return {
        "id": integration_id,
        "name": integration_id,
        "scopes": ["orders:read"],
        "credentials": [{"id": key.credential_id, "digest": key.digest}],
    }

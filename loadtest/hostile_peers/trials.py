"""Trials: a real sidecar, its decisions with and without a hostile peer, and an administrator meanwhile."""

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
from contextlib import contextmanager
from dataclasses import dataclass
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
"""For a suspension to be answered and in force, and for a scrape."""
RATIO_MAX = 1.2
GROWTH_MAX_BYTES = 64 << 20
GRPC_GROWTH_MAX_BYTES = 128 << 20
"""Untaken answers may take 64 MiB in all (`limits.unsent_bytes_max`), beside the calls themselves."""


@dataclass(frozen=True, slots=True)
class PeerRound:
    """
    One round with a peer. A time of infinity = not at all.

    `decoy_p99_us` is the decisions' p99 while the same peer attacked another sidecar.
    """

    decoy_p99_us: float
    p99_us: float
    growth_bytes: int
    suspended_s: float
    scraped_s: float


@dataclass(frozen=True, slots=True)
class PeerTrial:
    """All rounds with one kind of peer at one listener."""

    listener: str
    kind: str
    rounds: tuple[PeerRound, ...]

    @property
    def ratio(self) -> float:
        """The decisions' p99 beside the peer to that beside the decoy's peer: the median of all pairs."""
        return median(each.p99_us / each.decoy_p99_us for each in self.rounds)

    @property
    def growth_bytes(self) -> int:
        """By how much memory grew at the most."""
        return max(each.growth_bytes for each in self.rounds)

    @property
    def suspended_s(self) -> float:
        """The longest time from the administrator's word to its effect."""
        return max(each.suspended_s for each in self.rounds)

    @property
    def scraped_s(self) -> float:
        """The longest time that a scrape of the metrics took."""
        return max(each.scraped_s for each in self.rounds)

    @property
    def is_safe(self) -> bool:
        """Whether memory stayed within its bound and no administrator was kept out."""
        growth_max_bytes = GRPC_GROWTH_MAX_BYTES if self.listener == "grpc" else GROWTH_MAX_BYTES
        return self.growth_bytes <= growth_max_bytes and self.suspended_s < ANSWER_TIMEOUT_S

    @property
    def is_kept(self) -> bool:
        """
        Whether decisions, too, stayed as fast as promised.

        Peers of a listener that decides share it fairly with other proxies, and so take time from them.
        """
        return self.is_safe and (self.listener in DECIDING_KINDS or self.ratio <= RATIO_MAX)


class AttackedSidecar:
    """A sidecar and integrations to suspend, one for each round; see the two kinds below."""

    attacked: Sequence[str]
    """Its listeners that peers attack; the first one serves HTTP, and metrics."""
    load_core = LOAD_CORE
    manner = Manner.EQUAL

    def __init__(self, folder: Path, targets: int) -> None:
        """Nothing runs yet."""
        self.folder = folder
        self.hot = generate_api_key()
        self.targets = [generate_api_key() for _ in range(targets)]
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in {"grpc", "admin", *self.attacked}}
        self._suspended = 0

    def records(self) -> list[dict[str, Any]]:
        """The integrations, as a registry file and the admin API both take them."""
        hot = {**_record("hot", self.hot), "rate_limit_rpm": 10_000, "burst": BURST}
        return [hot, *(_record(f"target-{number}", key) for number, key in enumerate(self.targets))]

    def write_config(self, registry: str) -> Path:
        """The configuration of the sidecar."""
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
        """The sidecar, ready to decide."""
        raise NotImplementedError

    def suspend(self, number: int) -> None:
        """Have target *number* suspended, as an administrator does it."""
        raise NotImplementedError

    def time_suspension(self) -> float:
        """
        Suspend the next target; the seconds until no request of it is admitted, `inf` = too many.

        Each decision is asked for on a connection of its own, as a proxy that has just started would.
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
        return float("inf")

    def p99_us(self, calls: int) -> float:
        """The latency that 99 % of *calls* decisions kept within, from the moment they were due."""
        target = self.addresses["grpc"]
        run = Run(target, CHECK, calls, CONNECTIONS, 0, RATE_PER_S, WARM_UP_S, self.manner)
        message = check_request(self.hot.api_key)
        return replay(self.folder, run, [message], array("H", [0]), self.load_core).typical_us["0.99"]


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
        """Write it into the file."""
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

    The supervisor shares its core with the peer, and the worker, which decides, shares the other with the
    load of decisions: what a peer costs the supervisor is not what the promise is about.
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
        told = calls.call("POST", "/changes", {"changes": changes})
        calls.close()
        refused = [result for result in told["results"] if result["status"] != 201]
        if refused:
            raise BenchError(f"an integration was not created: {refused[0]}")

    def suspend(self, number: int) -> None:
        """Call the admin API, on a connection of its own."""
        connection = http.client.HTTPConnection(self.addresses["admin"], timeout=ANSWER_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        body = json.dumps({"reason": "trial"})
        connection.request("POST", f"/v1/integrations/target-{number}/suspend", body, headers)
        response = connection.getresponse()
        told = response.read()
        connection.close()
        if response.status != 200:
            raise BenchError(f"the suspension was answered {response.status}: {told[:500].decode()}")


SIDECARS: tuple[type[AttackedSidecar], ...] = (SidecarWithFile, SidecarWithAdminApi)


def hold_trials(
    sidecar_type: type[AttackedSidecar], folder: Path, kinds: Sequence[str], rounds: int, calls: int
) -> list[PeerTrial]:
    """
    Hold *rounds* rounds with each of *kinds* that attack a listener of it; *calls* decisions each.

    Raises:
        BenchError: a decision was not answered at all, or the trials could not be held.
    """
    attacks = [
        (listener, kind)
        for listener in sidecar_type.attacked
        for kind in kinds
        if listener in KINDS[kind].listeners
    ]
    attacked = sidecar_type(folder, len(attacks) * rounds)
    with attacked.running() as process, _decoy(sidecar_type, folder) as decoy:
        attacked.p99_us(calls)  # warm
        base_bytes = process.rss_bytes()
        held: dict[tuple[str, str], list[PeerRound]] = {attack: [] for attack in attacks}
        for number in range(rounds):
            for listener, kind in attacks:
                print(f"round {number + 1}: {listener}, {KINDS[kind].text}", file=sys.stderr, flush=True)
                with attacking(kind, decoy.addresses[listener], LOAD_CORE):
                    decoy_p99_us = attacked.p99_us(calls)
                with _sampled(process) as samples, attacking(kind, attacked.addresses[listener], LOAD_CORE):
                    p99_us = attacked.p99_us(calls)
                    suspended_s = attacked.time_suspension()
                    scraped_s = _time_scrape(attacked.addresses[attacked.attacked[0]])
                growth_bytes = max(samples) - base_bytes
                held[listener, kind].append(
                    PeerRound(decoy_p99_us, p99_us, growth_bytes, suspended_s, scraped_s)
                )
    return [PeerTrial(listener, kind, tuple(each)) for (listener, kind), each in held.items()]


@contextmanager
def _decoy(sidecar_type: type[AttackedSidecar], folder: Path) -> Iterator[AttackedSidecar]:
    """
    A second sidecar, on the peer's core, that runs only when nothing else does.

    A peer costs the machine time, and the load of decisions with it, whomever it attacks: connections and
    bytes over the loopback. Compared with a peer of the decoy, only what the attacked sidecar does counts.
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
    """The memory of all processes of *sidecar*, again and again while the block runs."""
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
        return float("inf")
    return monotonic() - began_s


def _record(integration_id: str, key: NewApiKey) -> dict[str, Any]:
    return {
        "id": integration_id,
        "name": integration_id,
        "scopes": ["orders:read"],
        "credentials": [{"id": key.credential_id, "digest": key.digest}],
    }

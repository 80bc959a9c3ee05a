"""The admin API under load: its effect on the latency of decisions, and its speed with many integrations."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import yaml

from loadtest.bench.admin_calls import AdminCalls, Hammer, Hammered, hammering
from loadtest.bench.processes import (
    LOAD_CORE,
    SERVER_CORE,
    BenchError,
    RunningSidecar,
    free_port,
    running_sidecar,
)
from loadtest.bench.replay import Manner, Replayed, Run, replay
from loadtest.bench.report import Row, Section
from loadtest.bench.workload import BURST, CHECK, check_request
from sidecar.domain.api_keys import NewApiKey, generate_api_key

INTEGRATIONS = 10_000
BATCH = 1_000
PAGE = 500
RATE_PER_S = 4_000.0
CALLS = 16_000
WARM_UP_S = 0.5
CONNECTIONS = 4
ROUNDS = 3
KINDS: dict[str, tuple[int, int]] = {
    "lists are read": (4, 0),
    "changes are made": (0, 4),
    "both": (3, 1),
}
"""Hammering connections: readers and writers."""
HOT_ID = "hot"


@dataclass(frozen=True, slots=True)
class Placement:
    """
    The core of the supervisor, which serves the API, and of the API's load; and that of the decisions' load.

    The deciding worker is always on the server's core.
    """

    title: str
    text: str
    core: int
    load_core: int
    manner: Manner


PLACEMENTS = (
    Placement(
        "Decisions while the admin API is hammered, on another core",
        "One core has the worker that decides and the load of decisions, which takes what the worker leaves;"
        " the other has the supervisor that serves the API, and the hammer.",
        LOAD_CORE,
        SERVER_CORE,
        Manner.LAST,
    ),
    Placement(
        "Decisions while the admin API is hammered, on the same core",
        "The worst place: the worker that decides, the supervisor that serves the API and the hammer share"
        " one core, which is never idle then. The load of decisions has the other.",
        SERVER_CORE,
        LOAD_CORE,
        Manner.EQUAL,
    ),
)


def run() -> list[Section]:
    """Measure decisions with and without load on the API, then the API with many integrations."""
    with tempfile.TemporaryDirectory() as name, _running(Path(name)) as scene:
        bulk = _bulk_rows(scene)
        return [
            *(_section(scene, placement) for placement in PLACEMENTS),
            Section(
                f"The admin API over {INTEGRATIONS:,} integrations",
                "The same sidecar on one core, one connection, nothing else going on.",
                bulk,
            ),
        ]


def _section(scene: _Scene, placement: Placement) -> Section:
    scene.place(placement)
    return Section(
        placement.title,
        f"`registry: sqlite:` with {INTEGRATIONS:,} integrations. {placement.text} Decisions come at random"
        f" moments, {RATE_PER_S:,.0f} a second on average, latency counted from when each was due; the"
        " hammer's 4 connections send the next call as soon as one is answered. Median of"
        f" {ROUNDS} rounds; the ratio is to decisions alone.",
        _latency_rows(scene, placement),
    )


class _Scene:
    """A running sidecar with a control plane."""

    def __init__(self, folder: Path, sidecar: RunningSidecar, token: str) -> None:
        self.folder = folder
        self.sidecar = sidecar
        self.token = token
        self.calls = AdminCalls(sidecar.admin, token)
        self.key: NewApiKey = generate_api_key()

    def place(self, placement: Placement) -> None:
        """Move the supervisor with all its threads; its workers stay where they are."""
        moved = ["taskset", "-acp", str(placement.core), str(self.sidecar.pid)]
        subprocess.run(moved, check=True, capture_output=True, timeout=10)

    def decide(self, placement: Placement, calls: int = CALLS) -> Replayed:
        """Send *calls* decisions at RATE_PER_S."""
        run = Run(self.sidecar.grpc, CHECK, calls, CONNECTIONS, 0, RATE_PER_S, WARM_UP_S, placement.manner)
        message = check_request(self.key.api_key)
        return replay(self.folder, run, [message], array("I", [0]), placement.load_core)


@contextmanager
def _running(folder: Path) -> Iterator[_Scene]:
    grpc, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    config = folder / "sidecar.yaml"
    settings = {
        "listen": {"grpc": grpc, "admin": admin},
        "client_ip": {"header": "x-client-ip"},
        "registry": "sqlite:registry.sqlite",
        "routes": [{"methods": ["GET"], "path": "/v1/orders/{id}", "scope": "orders:read"}],
    }
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "sidecar.cli", "admin", "bootstrap", "--id", "bench"]
    made = subprocess.run(
        [*command, "--config", str(config)], capture_output=True, text=True, check=True, timeout=60
    )
    with running_sidecar(config, grpc, admin) as sidecar:
        yield _Scene(folder, sidecar, made.stdout.strip())


def _bulk_rows(scene: _Scene) -> list[Row]:
    """Fill the registry, then list and search it."""
    rows = [_timed("create all, 1,000 in a call", lambda: _create_all(scene))]
    _create_hot(scene)
    rows.append(_timed(f"list all, {PAGE} a page", lambda: _list_all(scene)))
    rows.append(_timed("search for one", lambda: _expect(_found(scene, "bystander-07777"), 1)))
    rows.append(_timed("search that finds 500", lambda: _expect(_found(scene, "bystander"), PAGE)))
    return rows


def _timed(what: str, work: Callable[[], object]) -> Row:
    started_s = perf_counter()
    work()
    took_s = perf_counter() - started_s
    return Row(what, f"{took_s:.2f} s" if took_s >= 0.5 else f"{took_s * 1e3:.1f} ms")


def _create_all(scene: _Scene) -> None:
    for first in range(0, INTEGRATIONS, BATCH):
        changes = [_creation(number) for number in range(first, first + BATCH)]
        answer = scene.calls.call("POST", "/changes", {"changes": changes})
        _expect(sum(result["status"] == 201 for result in answer["results"]), BATCH)


def _creation(number: int) -> dict[str, Any]:
    key = generate_api_key()
    return {
        "action": "integration.create",
        "integration_id": f"bystander-{number:05}",
        "name": f"Bystander {number}",
        "scopes": ["orders:read"],
        "credentials": [{"id": key.credential_id, "digest": key.digest}],
    }


def _create_hot(scene: _Scene) -> None:
    """Create the integration of the decisions, with the allowlist of the other benchmarks."""
    networks = [*(f"10.{number}.0.0/24" for number in range(49)), "198.51.100.0/24"]
    creation: dict[str, Any] = {
        **_creation(0),
        "integration_id": HOT_ID,
        "credentials": [{"id": scene.key.credential_id, "digest": scene.key.digest}],
        "rate_limit_rpm": 10_000,
        "burst": BURST,
        "allowlist": networks,
    }
    answer = scene.calls.call("POST", "/changes", {"changes": [creation]})
    _expect(answer["results"][0]["status"], 201)
    scene.calls.call("POST", f"/integrations/{HOT_ID}/allowlist/enable", {})


def _list_all(scene: _Scene) -> None:
    after, seen = "", 0
    while True:
        page = scene.calls.call("GET", f"/integrations?limit={PAGE}&after={after}")
        seen += len(page["items"])
        after = page["next_after"]
        if not after:
            return _expect(seen, INTEGRATIONS + 1)


def _found(scene: _Scene, search: str) -> int:
    return len(scene.calls.call("GET", f"/integrations?limit={PAGE}&search={search}")["items"])


def _expect(actual: int, wanted: int) -> None:
    if actual != wanted:
        raise BenchError(f"the admin API returned {actual} instead of {wanted}")


def _latency_rows(scene: _Scene, placement: Placement) -> list[Row]:
    scene.decide(placement, CALLS // 4)  # warm
    alone: list[Replayed] = []
    beside: dict[str, list[tuple[Replayed, Hammered]]] = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS):
        alone.append(scene.decide(placement))
        for kind, (readers, writers) in KINDS.items():
            hammer = Hammer(scene.sidecar.admin, scene.token, readers, writers)
            with hammering(scene.folder, hammer, placement.core) as hammered:
                measured = scene.decide(placement)
            beside[kind].append((measured, hammered))
    rows = []
    for share in ("0.5", "0.99"):
        base_us = median(replayed.latencies_us[share] for replayed in alone)
        rows.append(Row(f"p{float(share) * 100:g}, decisions alone", f"{base_us:,.0f} µs"))
        for kind, pairs in beside.items():
            us = median(measured.latencies_us[share] for measured, _ in pairs)
            row = Row(
                f"p{float(share) * 100:g}, {kind}", f"{us:,.0f} µs", _rates(pairs), f"{us / base_us:.1f} ×"
            )
            rows.append(row)
    return rows


def _rates(pairs: list[tuple[Replayed, Hammered]]) -> str:
    """Return the rates of the API's load."""
    reads = median(hammered.reads / hammered.elapsed_s for _, hammered in pairs)
    changes = median(hammered.changes / hammered.elapsed_s for _, hammered in pairs)
    return f"{reads:,.0f} pages and {changes:,.0f} changes a second"

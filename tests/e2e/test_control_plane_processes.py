"""The control plane and its processes: several workers, several writers, crashes, and the end."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from deploy.demo.sidecar import Sidecar
from sidecar.cli.check_client import Asker
from sidecar.domain.accounts import authenticate, token_id_of
from sidecar.domain.api_keys import credential_id_of
from sidecar.domain.changes import ChangeContext, ChangeRequest
from sidecar.domain.cidr import parse_address
from sidecar.domain.lifecycle import commands as c
from sidecar.process.config import load_config
from sidecar.process.control_plane import open_registry
from sidecar.services.ext_authz_client import Checked, check_request
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.protocol import ListQuery, Registry
from sidecar.stores.registry.verification import RegistryReport, verify_registry
from tests.redis_servers import shared
from tests.unit.process.running import Running, admin_get
from tests.waiting import eventually

from .control_plane import SQLITE, Administrator, bootstrap
from .workers import CRASHED

Result = TypeVar("Result")

WRITERS = 4
ROUNDS = 2
CHANGES_BEFORE_KILL = 25
SOCKETS = ("grpc.0.sock", "grpc.1.sock")
ADDRESS = "192.0.2.7"
OPEN = [{"path": "/v1/**", "scope": "none"}]


class Controlled:
    """A sidecar with a control plane in *folder*, and its first administrator."""

    def __init__(self, folder: Path, registry: str | None, **settings: Any) -> None:
        """Start it, on Unix sockets, and make the administrator."""
        self.folder = folder
        self.config = folder / "sidecar.config.yaml"
        self._arguments = folder, f"unix:{folder}/grpc.sock", registry
        self._settings = {"routes": OPEN, "log": {"format": "json"}, **settings}
        self.sidecar = self._started()
        self.ann = Administrator(str(folder / "sidecar.sock"), bootstrap(self.config))

    def _started(self) -> Sidecar:
        folder, address, registry = self._arguments
        return Sidecar(folder, address, registry, **self._settings)

    def restart(self) -> None:
        """Start it again, after it has ended."""
        self.sidecar = self._started()

    def ask(self, key: str, name: str = "grpc.sock") -> Checked:
        """Ask at one of its Unix sockets."""
        headers = {"x-api-key": key, "x-client-ip": ADDRESS}
        with Asker(f"unix:{self.folder}/{name}") as asker:
            return asker.ask(check_request("GET", "/v1/orders", headers, "127.0.0.1"))

    def on_registry(self, work: Callable[[Registry], Awaitable[Result]]) -> Result:
        """Do *work* on the registry, in this process."""

        async def run() -> Result:
            registry = await open_registry(load_config(self.config))
            try:
                return await work(registry)
            finally:
                await registry.aclose()

        return asyncio.run(run())

    def verify(self) -> RegistryReport:
        """What the verification of the registry finds."""
        return self.on_registry(verify_registry)

    def ids(self) -> set[str]:
        """The integrations that the registry holds."""

        async def listed(registry: Registry) -> set[str]:
            found: set[str] = set()
            after = ""
            while True:
                page = await registry.list(ListQuery(after=after, limit=500))
                found |= {record.id for record in page.records}
                after = page.next_after
                if not after:
                    return found

        return self.on_registry(listed)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path is short enough for Unix sockets."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """A fleet that tests share; each has separate integrations."""
    with a_fleet(tmp_path_factory.mktemp("f")) as controlled:
        yield controlled


@contextmanager
def a_fleet(folder: Path) -> Iterator[Controlled]:
    """A supervisor with two workers, both known to the registry, which has a separate place in Redis."""
    store = f"{shared().standalone.url}?prefix=control:{secrets.token_hex(4)}:"
    controlled = Controlled(folder, None, store=store, workers=2)
    try:
        eventually(lambda: len(controlled.ann.get("/sidecars")["items"]) == 2, what="both are announced")
        yield controlled
    finally:
        controlled.sidecar.stop()


@pytest.fixture(scope="module")
def shared_single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """One worker over a SQLite file, and its supervisor, for tests that leave both running."""
    controlled = Controlled(tmp_path_factory.mktemp("s"), SQLITE)
    yield controlled
    controlled.sidecar.stop()


@pytest.fixture
def single(folder: Path) -> Iterator[Controlled]:
    """The same, for a test that ends it."""
    controlled = Controlled(folder, SQLITE)
    yield controlled
    controlled.sidecar.stop()


def test_workers__follow_the_supervisor_s_api(fleet: Controlled) -> None:
    """Both workers know what the API has changed, and share one bucket exactly."""
    made = fleet.ann.change(
        "/integrations?wait=20s", id="acme", name="Acme", issue_credential=True, rate_limit_rpm=1, burst=7
    )
    assert made["confirmation"]["is_complete"] is True
    key = made["api_key"]
    answers = [fleet.ask(key, SOCKETS[number % 2]) for number in range(12)]
    assert sum(answer.is_allowed for answer in answers) == 7
    assert fleet.sidecar.metric("sidecar_registry_in_touch") == 1


def test_workers__refuse_after_a_suspension(fleet: Controlled) -> None:
    """Once the API has answered, both workers know a new key; after a suspension neither admits a request."""
    key = fleet.ann.create("leaky", rate_limit_rpm=10_000)
    assert [fleet.ask(key, socket).is_allowed for socket in SOCKETS] == [True, True]
    fleet.ann.change("/integrations/leaky/suspend", reason="leak")
    assert [fleet.ask(key, socket).reason for socket in SOCKETS] == ["integration_suspended"] * 2


def test_workers__confirm_a_suspension(fleet: Controlled) -> None:
    """A suspension that waits for the fleet is confirmed by both workers, and is recorded."""
    fleet.ann.create("waiting")
    reported = fleet.ann.change("/integrations/waiting/suspend?wait=20s", reason="leak")["confirmation"]
    assert (reported["is_complete"], reported["sidecars"], reported["waiting_for"]) == (True, 2, [])
    assert fleet.verify().is_intact


def test_supervisor__rolls_and_ends_with_its_connections(folder: Path) -> None:
    """After a rolling restart API and workers go on together; on a stop signal all end, uses recorded."""
    rolled = 'sidecar_rolling_restarts_total{result="ok"}'
    with a_fleet(folder) as fleet:
        fleet.sidecar.signal(signal.SIGHUP)
        eventually(lambda: fleet.sidecar.metric(rolled) == 1, what="the workers are replaced")
        key = fleet.ann.create("acme", rate_limit_rpm=10_000)
        eventually(
            lambda: all(fleet.ask(key, socket).is_allowed for socket in SOCKETS), what="both know the key"
        )
        assert fleet.sidecar.stop() == 0
        uses = fleet.on_registry(lambda registry: registry.last_uses("acme"))
        printed = fleet.sidecar.printed()
    assert [use.address for use in uses.values()] == [parse_address(ADDRESS)]
    assert "Traceback" not in printed
    assert "not closed" not in printed


def test_other_processes__are_followed(shared_single: Controlled) -> None:
    """What another process changes in the same file is seen, by the API at once and by decisions soon."""
    key = shared_single.ann.create("followed")
    assert shared_single.ask(key).is_allowed
    shared_single.on_registry(lambda registry: suspend_as(registry, shared_single.ann.token))
    assert shared_single.ann.get("/integrations/followed")["status"] == "suspended"
    eventually(lambda: shared_single.ask(key).reason == "integration_suspended", what="it is in force")


def test_crash__in_the_midst_of_writes(single: Controlled) -> None:
    """
    kill -9 while several administrators write: what was answered is there, and the registry verifies.

    Twice on the same file; each time the sidecar serves again with all that it had.
    """
    answered: dict[str, str] = {}
    for round in range(ROUNDS):
        enough = len(answered) + CHANGES_BEFORE_KILL
        writers = [
            threading.Thread(target=create_until_cut, args=(single.ann, f"r{round}w{number}", answered))
            for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        eventually(lambda enough=enough: len(answered) >= enough, what="changes are answered")  # type: ignore[misc]
        single.sidecar.signal(signal.SIGKILL)
        for writer in writers:
            writer.join(60)
        single.sidecar.wait()
        assert set(answered) <= single.ids()
        assert single.verify().is_intact
        single.restart()
        assert single.ask(list(answered.values())[-1]).is_allowed
    assert single.ann.get("/audit/verify")["is_intact"] is True


def test_backup__while_it_serves(single: Controlled) -> None:
    """
    A copy taken as the manual says verifies, and a sidecar that gets it knows what it holds.

    When and from where a key was used outlives the process; a use that was refused its address is none.
    """
    kept, stranger = single.ann.create("kept"), single.ann.create("strict", allowlist=["198.51.100.0/24"])
    assert single.ask(kept).is_allowed
    single.ann.change("/integrations/strict/allowlist/enable")
    assert single.ask(stranger).reason == "ip_not_allowed"
    copy = single.folder / "backup.sqlite"
    with closing(sqlite3.connect(single.folder / "registry.sqlite")) as database:
        database.execute("VACUUM INTO ?", (str(copy),))
    late = single.ann.create("late")
    assert single.sidecar.stop() == 0
    uses = single.on_registry(lambda registry: registry.last_uses("kept"))
    assert {id: use.address for id, use in uses.items()} == {credential_id_of(kept): parse_address(ADDRESS)}
    assert single.on_registry(lambda registry: registry.last_uses("strict")) == {}
    for part in single.folder.glob("registry.sqlite*"):
        if part.suffix != ".key":
            part.rename(single.folder / f"former-{part.name}")
    copy.chmod(0o600)
    copy.rename(single.folder / "registry.sqlite")
    assert single.verify().is_intact
    single.restart()
    assert single.ask(kept).is_allowed
    assert single.ask(late).reason == "unknown_credential"
    assert single.ann.get("/integrations")["items"][0]["id"] == "kept"


def test_metrics_listener__serves_pages_alone(folder: Path) -> None:
    """An address for scrapers shows metrics and health, and nothing about integrations."""
    listen = {"grpc": f"unix:{folder}/g.sock", "admin": f"unix:{folder}/a.sock", "metrics": "0.0.0.0:0"}
    config = folder / "sidecar.yaml"
    config.write_text(yaml.safe_dump({"listen": listen, "registry": SQLITE, "log": {"format": "json"}}))
    with Running(folder, "--config", str(config)) as sidecar:
        port = sidecar.event("supervising")["metrics"][0].rpartition(":")[2]
        sidecar.event("registry loaded")
        answers = {
            path: admin_get(f"127.0.0.1:{port}", path)
            for path in ("/metrics", "/healthz", "/readyz", "/v1/whoami", "/v1")
        }
        assert {path: status for path, (status, _) in answers.items()} == {
            "/metrics": 200, "/healthz": 200, "/readyz": 200, "/v1/whoami": 404, "/v1": 404
        }  # fmt: skip
        assert "listen.admin" in answers["/v1/whoami"][1]


def test_priority__decisions_go_before_the_api(shared_single: Controlled) -> None:
    """The supervisor has the highest niceness; its worker has that of the start, also one after kill -9."""
    start = os.nice(0)
    supervisor, (first,) = shared_single.sidecar.pid, workers_of(shared_single)
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in (supervisor, first)] == [19, start]
    key = shared_single.ann.create("prior")
    crashed = shared_single.sidecar.metric(CRASHED)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: shared_single.sidecar.metric(CRASHED) == crashed + 1, what="the crash is noticed")
    eventually(shared_single.sidecar.is_ready, what="another worker decides")
    (second,) = set(workers_of(shared_single)) - {first}
    assert os.getpriority(os.PRIO_PROCESS, second) == start
    assert shared_single.ask(key).is_allowed
    shared_single.ann.change("/integrations/prior/suspend", reason="leak")
    assert shared_single.ask(key).reason == "integration_suspended"


def test_reload__keeps_buckets_that_are_not_shared(shared_single: Controlled) -> None:
    """SIGHUP reaches the one worker, which stays: a successor would give every integration a full bucket."""
    key = shared_single.ann.create("kept", rate_limit_rpm=1, burst=3)
    assert [shared_single.ask(key).is_allowed for _ in range(4)] == [True, True, True, False]
    before = workers_of(shared_single)
    reported = shared_single.sidecar.printed().count('"reload requested"')
    shared_single.sidecar.signal(signal.SIGHUP)
    eventually(
        lambda: shared_single.sidecar.printed().count('"reload requested"') == reported + 2,
        what="both are reported",
    )
    assert workers_of(shared_single) == before
    assert not shared_single.ask(key).is_allowed


def test_change__is_not_in_force_while_a_worker_stands_still(shared_single: Controlled) -> None:
    """The API waits for the worker, but not forever: the change is made, and the answer says what lacks."""
    shared_single.ann.create("still")
    (worker,) = workers_of(shared_single)
    os.kill(worker, signal.SIGSTOP)
    try:
        answer = shared_single.ann.send("POST", "/integrations/still/suspend", {"reason": "leak"})
    finally:
        os.kill(worker, signal.SIGCONT)
    assert (answer.status, answer.json()["is_in_force"]) == (200, False)
    shared_single.ann.change("/integrations", id="next", name="Next")


def workers_of(controlled: Controlled) -> list[int]:
    """The processes that its supervisor has started and not waited for."""
    tasks = Path(f"/proc/{controlled.sidecar.pid}/task").iterdir()
    return sorted(int(pid) for task in tasks for pid in (task / "children").read_text().split())


def create_until_cut(administrator: Administrator, name: str, answered: dict[str, str]) -> None:
    """Create one integration after the other until the sidecar ends; note each that was answered."""
    for number in itertools.count():
        try:
            key = administrator.create(f"{name}-{number}")
        except (OSError, http.client.HTTPException):
            return
        answered[f"{name}-{number}"] = key


async def suspend_as(registry: Registry, token: str) -> None:
    """Suspend an integration past the API, as the holder of *token*."""
    now_us = wall_clock_us()
    actor = authenticate(token, await registry.token_holder(token_id_of(token)), now_us)
    command = c.Suspend(integration_id="followed", reason="leak")
    await registry.apply(ChangeRequest(command, actor, ChangeContext("req-1", "local")))


@pytest.mark.parametrize("workers", [1, 2])
def test_listener__open_to_a_network_in_the_clear(folder: Path, workers: int) -> None:
    """An admin listener that other machines reach is refused without TLS, before anything is started."""
    config = folder / "sidecar.yaml"
    settings = {
        "listen": {"grpc": f"unix:{folder}/grpc.sock", "admin": "0.0.0.0:0"},
        "workers": workers,
        "store": "redis://127.0.0.1:1",
    }
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "sidecar.cli", "serve", "--config", str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "listen.admin" in ended.stderr
    assert "'listen.metrics'" in ended.stderr

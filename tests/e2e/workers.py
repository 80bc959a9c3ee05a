"""A supervisor with real workers, callers that keep them busy, and a scraper that watches the counts."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import yaml

from deploy.demo.calling import Answer, Client
from deploy.demo.programs import Program
from deploy.demo.sidecar import ROUTES, Owner, write_registry
from sidecar.services.ext_authz import CHECK
from sidecar.services.ext_authz_client import check_request
from tests.e2e.in_background import InBackground
from tests.waiting import eventually

WORKERS = 2
CALLERS = 4
CALL_TIMEOUT_S = 60.0
FAULTS_KEPT = 50
PAUSE_S = 0.01
"""Between two calls of one caller, and ten times that between scrapes: the workers need the CPUs, too."""
BEATS_MISSED_MAX = 30

DECISIONS = "sidecar_decisions_total"
CRASHED = 'sidecar_worker_restarts_total{reason="crashed"}'
ROLLED = 'sidecar_rolling_restarts_total{result="ok"}'
NOT_ROLLED = 'sidecar_rolling_restarts_total{result="failed"}'
COUNTER_ENDS = ("_total", "_bucket", "_count", "_sum")

_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each caller
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


def make_owner() -> Owner:
    """Somebody with a bucket that no test empties."""
    return Owner("caller", "Caller", scopes=["inventory:read"], rate_limit_rpm=10_000, burst=1_000_000)


class Supervised(Program):
    """A running supervisor with `WORKERS` workers, serving *owner* on *grpc*."""

    def __init__(
        self,
        folder: Path,
        grpc: str | Sequence[str],
        owner: Owner,
        beats_missed_max: int = BEATS_MISSED_MAX,
        is_awaited: bool = True,
        **settings: Any,
    ) -> None:
        """Write the files and start; *is_awaited* = until all workers are ready."""
        self.folder = folder
        self.owner = owner
        self.config = folder / "sidecar.yaml"
        self.registry = folder / "registry.yaml"
        self._admin_path = str(folder / "admin.sock")
        if not self.registry.exists():
            write_registry(self.registry, [owner])
        self.configure(grpc, **settings)
        module = "tests.e2e.unshared_workers"
        command = [sys.executable, "-m", module, str(self.config), str(WORKERS), str(beats_missed_max)]
        super().__init__("supervisor", command, folder)
        if is_awaited:
            try:
                self.wait_for(lambda: self.status() == "ready", "all workers being ready")
            except BaseException:
                self.stop()
                raise

    def configure(self, grpc: str | Sequence[str], **settings: Any) -> None:
        """Write the configuration file again."""
        defaults = {"routes": list(ROUTES), "registry": str(self.registry), "log": {"format": "json"}}
        listen = {"grpc": grpc, "admin": f"unix:{self._admin_path}"}
        self.config.write_text(yaml.safe_dump({"listen": listen, **defaults, **settings}))

    def admin(self, path: str) -> Answer:
        """Ask its admin listener."""
        client = Client(path=self._admin_path)
        try:
            return client.send("GET", path)
        finally:
            client.close()

    def status(self) -> str:
        """What /readyz says: 'ready', 'degraded', 'not ready', or '' while nothing answers."""
        try:
            answer = self.admin("/readyz")
        except OSError:
            return ""
        status: str = answer.json()["status"]
        assert (answer.status == 200) == (status != "not ready")
        return status

    def metrics(self) -> dict[str, float]:
        """Every series of the sidecar in /metrics, as text with labels, and its value."""
        lines = self.admin("/metrics").body.decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith("sidecar_"))
        return {name: float(value) for name, _, value in pairs}

    def metric(self, series: str) -> float:
        """One series; a bare name is the sum over its labels."""
        found = self.metrics()
        return found[series] if series in found else sum(_of(found, series))

    def lines(self, message: str) -> list[dict[str, Any]]:
        """The log lines with this message, its workers' too."""
        found = []
        for line in self.printed().splitlines():
            if line.startswith("{") and line.endswith("}"):
                entry = json.loads(line)
                if entry["message"] == message:
                    found.append(entry)
        return found

    def pids(self) -> list[int]:
        """The process of each worker, by number, as it was started last."""
        last = {line["worker"]: line["pid"] for line in self.lines("worker started")}
        return [last[index] for index in range(WORKERS)]

    def kill_worker(self, index: int) -> None:
        """kill -9 one worker and wait until it was noticed, and made good."""
        before = self.metric(CRASHED)
        send_signal(self.pids()[index], signal.SIGKILL)
        eventually(lambda: self.metric(CRASHED) == before + 1, what="the crash is noticed")
        eventually(lambda: self.status() == "ready", what="a new worker is ready")

    def roll(self, series: str = ROLLED) -> None:
        """Ask for a rolling restart and wait until it has ended as *series* counts."""
        before = self.metric(series)
        self.signal(signal.SIGHUP)
        eventually(lambda: self.metric(series) == before + 1, what=f"{series} grows")


def _of(found: dict[str, float], name: str) -> list[float]:
    return [value for series, value in found.items() if series.partition("{")[0] == name]


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process that a supervisor of ours has started."""
    os.kill(pid, number)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


class Callers(InBackground):
    """
    Clients that call again and again, each on a separate connection, one call at a time each.

    The calls go on until the `with` block ends; what a block waits for are calls, not times.
    """

    def __init__(self, addresses: Sequence[str], owner: Owner, is_patient: bool = False) -> None:
        """
        Call *addresses* in turn, as *owner*.

        Args:
            is_patient: calls wait for a connection (wait-for-ready), so that only what was under way
                when a connection died can fail.
        """
        super().__init__("caller", CALLERS, 2 * CALL_TIMEOUT_S)
        self._addresses = [addresses[number % len(addresses)] for number in range(CALLERS)]
        self._request = check_request(
            "GET", "/v1/inventory/42", {"x-api-key": owner.key.api_key}, "192.0.2.1"
        )
        self._is_patient = is_patient
        self.answers = [0] * CALLERS
        self.faults: list[tuple[int, str]] = []
        """Caller and error of each call without an answer; the first few."""

    @property
    def answered(self) -> int:
        """How many calls got an answer."""
        return sum(self.answers)

    def await_more(self, count: int, callers: Sequence[int] = range(CALLERS)) -> None:
        """Wait until each of *callers* has got *count* more answers."""
        goals = {caller: self.answers[caller] + count for caller in callers}
        eventually(
            lambda: all(self.answers[caller] >= goal for caller, goal in goals.items()),
            what=f"{count} more answers for each caller; faults: {self.faults}",
        )

    def go_on(self, number: int) -> None:
        """Call, as caller *number*."""
        with grpc.insecure_channel(self._addresses[number], _CHANNEL_OPTIONS) as channel:
            check = channel.unary_unary(CHECK, request_serializer=None, response_deserializer=None)
            while not self.is_over.wait(PAUSE_S) and len(self.faults) < FAULTS_KEPT:
                try:
                    check(self._request, timeout=CALL_TIMEOUT_S, wait_for_ready=self._is_patient)
                except grpc.RpcError as error:
                    self.faults.append((number, f"{error.code().name}: {error.details()}"))
                else:
                    self.answers[number] += 1


class Scraper(InBackground):
    """Reads /metrics again and again while the `with` block is open, and notes every counter that fell."""

    def __init__(self, supervised: Supervised) -> None:
        """Watch *supervised*."""
        super().__init__("scraper", 1, CALL_TIMEOUT_S)
        self._supervised = supervised
        self.scrapes = 0
        self.fallen: list[str] = []
        self.least_ready = WORKERS

    def go_on(self, number: int) -> None:
        """Scrape; the last look comes after the block."""
        before: dict[str, float] = {}
        is_last = False
        while not is_last:
            is_last = self.is_over.wait(10 * PAUSE_S)
            now = self._supervised.metrics()
            self.fallen += [
                f"{series}: {before[series]} -> {now.get(series)}"
                for series in before
                if series.partition("{")[0].endswith(COUNTER_ENDS) and now.get(series, -1.0) < before[series]
            ]
            self.least_ready = min(self.least_ready, int(now["sidecar_workers_ready"]))
            self.scrapes += 1
            before = now

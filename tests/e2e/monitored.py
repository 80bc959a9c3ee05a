"""Three sidecars that one Prometheus scrapes, and everything that can go wrong with them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import yaml

from deploy.demo.prometheus import Prometheus
from sidecar.cli.check_client import Asker
from sidecar.domain.api_keys import generate_api_key
from sidecar.services.ext_authz_client import check_request
from sidecar.transports.server import TlsFiles
from tests.certificates import Authority, replace, write
from tests.house.monitoring import runbook_commands
from tests.redis_servers import RedisServer, free_port
from tests.unit.cli.test_cli import run
from tests.unit.process.running import Configured, Running, admin_get, metric
from tests.unit.process.test_rate_limits import AskedLimits, limits_text, put
from tests.waiting import PATIENCE_S, eventually

TYPED = ("curl ", "redis-cli -u ", "openssl ")
"""The programs of the runbook that need neither root nor systemd."""
ALERT_PATIENCE_S = 2 * PATIENCE_S
"""An alert needs two scrapes, and Prometheus gives up on one that takes more than three seconds."""
PAUSE_S = 0.2
"""Between two looks at the alerts, which are evaluated every second."""
KILLS = 4
"""Workers that are killed; more than three in 15 minutes are a crash loop."""


def soon(days: int) -> str:
    """A time some days ahead, as in a registry file."""
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%dT%H:%MZ}"


class BusySidecar:
    """A sidecar with buckets in a Redis, a YAML registry and rate-limit files, under load."""

    def __init__(self, folder: Path, parts: ExitStack) -> None:
        """Start it."""
        folder.mkdir()
        self.limits = folder / "limits" / "shop.yaml"
        self.limits.parent.mkdir()
        self.limits.write_text(limits_text(1))
        self.redis = RedisServer(folder / "redis", port=free_port()).start()
        parts.callback(self.redis.stop)
        self.place = Configured(
            folder,
            store=self.redis.url,
            invalid_keys_per_minute=10,
            store_timeout_ms=1_000,
            rate_limits="limits",
        )
        self.write_registry()
        self.sidecar = parts.enter_context(self.place.serve())
        self.target = self.sidecar.event("serving")["grpc"][0]

    def write_registry(self, rate_limit_rpm: int = 60) -> None:
        """Write the registry: one integration, whose only credential expires soon."""
        key = self.place.key
        credential = {"id": key.credential_id, "digest": key.digest, "expires_at": soon(days=3)}
        self.place.write_registry(rate_limit_rpm=rate_limit_rpm, burst=60, credentials=[credential])

    def load(self) -> None:
        """Ask until requests are over the limit, without a route, and a flood of unknown keys."""
        key, unknown = self.place.key.api_key, generate_api_key().api_key
        asks = [(key, "/v1/orders", "")] * 70 + [(key, "/elsewhere", "")] * 10
        asks += [(unknown, "/v1/orders", "")] * 20 + [(key, "/v1/orders", "nonsense:read")]
        with Asker(self.target) as asker:
            for api_key, path, scope in asks:
                asker.ask(check_request("GET", path, {"x-api-key": api_key}, "127.0.0.1", scope))

    def limit_rates(self) -> None:
        """Ask the rate-limit service, whatever it answers."""
        with AskedLimits(self.sidecar) as asked, contextlib.suppress(grpc.RpcError):
            for _ in range(3):
                asked("user=a")

    def load_both(self) -> None:
        """Ask both services."""
        self.load()
        self.limit_rates()

    def be_slow(self) -> None:
        """Let Redis take 25 ms for each of some decisions."""
        with Asker(self.target) as asker:
            for _ in range(40):
                self.redis.client.execute_command("CLIENT", "PAUSE", "25", "ALL")
                asker.ask(
                    check_request("GET", "/elsewhere", {"x-api-key": self.place.key.api_key}, "127.0.0.1")
                )

    def break_files(self) -> None:
        """Make mistakes in the registry and the rate limits, then let the registry be unreadable."""
        failed = 'sidecar_registry_reloads_total{result="failed"}'
        before = metric(self.sidecar.admin(), failed)
        self.place.write_registry(rate_limit_rpm=0)
        put(self.limits, "domain: [")
        eventually(lambda: metric(self.sidecar.admin(), failed) > before, what="the registry is rejected")
        self.place.registry.unlink()
        self.place.registry.mkdir()

    def run_out_of_descriptors(self) -> None:
        """Let the sidecar have no descriptor for one more connection, for a moment."""
        limits = resource.prlimit(self.sidecar.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.sidecar.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        host, _, port = self.target.rpartition(":")
        try:
            with socket.create_connection((host, int(port))):
                eventually(lambda: "accepting on" in self.sidecar.printed(), what="accepting pauses")
        finally:
            resource.prlimit(self.sidecar.pid, resource.RLIMIT_NOFILE, limits)

    def misconfigure_redis(self) -> None:
        """Let Redis be out of memory, and evict keys."""
        self.redis.client.config_set("maxmemory-policy", "volatile-ttl")
        self.redis.client.config_set("maxmemory", 1)


class Workers:
    """A sidecar with two workers, TLS and a decision log."""

    def __init__(self, folder: Path, parts: ExitStack) -> None:
        """Start it; its certificate expires soon."""
        folder.mkdir()
        self.files = TlsFiles(folder / "cert.pem", folder / "key.pem")
        write(self.files, Authority("ca").issue("here", datetime.now(UTC) + timedelta(days=5)))
        tls = {"cert": "cert.pem", "key": "key.pem"}
        listen = {"grpc": [{"address": "127.0.0.1:0", "tls": tls}, "127.0.0.1:0"], "admin": "127.0.0.1:0"}
        self.redis = RedisServer(folder / "redis", port=free_port()).start()
        parts.callback(self.redis.stop)
        self.place = Configured(
            folder, listen=listen, store=self.redis.url, workers=2, decision_log="decisions"
        )
        self.sidecar = parts.enter_context(self.place.serve())
        eventually(lambda: admin_get(self.sidecar.admin(), "/readyz")[0] == 200, what="the workers are ready")

    def pid(self) -> int:
        """The process of the worker that started last."""
        return int(self.sidecar.events("worker started")[-1]["pid"])

    def block_one(self, prometheus: Prometheus) -> None:
        """Stop a worker until Prometheus has seen its silence."""
        with stopped(self.pid()):
            _await_result(prometheus, "max(sidecar_worker_silent_seconds) > 2")

    def kill_some(self, prometheus: Prometheus) -> None:
        """Kill workers one after the other, and wait until Prometheus has seen each end."""
        for number in range(1, KILLS + 1):
            started = len(self.sidecar.events("worker started"))
            signal_process(self.pid(), signal.SIGKILL)
            self.sidecar.event("worker started", number=started + 1)
            _await_result(prometheus, f'sum(sidecar_worker_restarts_total{{reason!="rolling"}}) >= {number}')

    def break_files(self) -> None:
        """Spoil the certificate, make a mistake in the configuration and ask for a rolling restart."""
        replace(self.files.certificate, b"none")
        self.place.file.write_text(self.place.file.read_text() + "nonsense: 1\n")
        self.sidecar.signal(signal.SIGHUP)

    def forbid_writing(self) -> None:
        """Let the writer of the decision log write no more, and record a decision."""
        writer = int(self.sidecar.event("decision log: writer started")["pid"])
        resource.prlimit(writer, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        self.place.ask(self.sidecar.event("supervising")["grpc"][1])


class Administered:
    """A sidecar whose registry is in a Redis; its only administrator's token expires soon."""

    def __init__(self, folder: Path, parts: ExitStack) -> None:
        """Start it."""
        folder.mkdir()
        self.redis = RedisServer(folder / "redis", port=free_port()).start()
        parts.callback(self.redis.stop)
        self.place = Configured(folder, store=self.redis.url, on_store_error="allow")
        self.place.write_registry(rate_limit_rpm=60, burst=5)
        settings = yaml.safe_load(self.place.file.read_text())
        del settings["registry"]
        self.place.file.write_text(yaml.safe_dump(settings))
        options = ("--config", str(self.place.file))
        made = run("admin", "bootstrap", "--id", "ann", "--expires", "5d", *options)
        assert made.exit_code == 0, made.output
        pushed = run(
            "registry",
            "push",
            str(self.place.registry),
            "--yes",
            *options,
            env={"SIDECAR_ADMIN_TOKEN": made.stdout.strip()},
        )
        assert pushed.exit_code == 0, pushed.output
        self.sidecar = parts.enter_context(self.place.serve())
        self.target = self.sidecar.event("serving")["grpc"][0]

    def ask(self, count: int) -> None:
        """Ask about *count* requests of the integration."""
        request = check_request("GET", "/v1/orders", {"x-api-key": self.place.key.api_key}, "127.0.0.1")
        with Asker(self.target) as asker:
            for _ in range(count):
                asker.ask(request)

    def guess_tokens(self) -> None:
        """Call the admin API without a token."""
        for _ in range(10):
            admin_get(self.sidecar.admin(), "/v1/integrations")


class Monitored:
    """The three sidecars, a fourth target that does not exist, and the Prometheus."""

    def __init__(self, folder: Path, parts: ExitStack) -> None:
        """Start everything; *parts* ends it."""
        self.busy = BusySidecar(folder / "busy", parts)
        self.workers = Workers(folder / "workers", parts)
        self.administered = Administered(folder / "administered", parts)
        running: list[Running] = [self.busy.sidecar, self.workers.sidecar, self.administered.sidecar]
        self.addresses = [each.admin() for each in running]
        targets = [*self.addresses, f"127.0.0.1:{free_port()}"]
        self.prometheus = parts.enter_context(Prometheus(folder, targets, alerts_at_once=True))
        eventually(self.is_scraped, what="the first scrapes")

    def is_scraped(self) -> bool:
        """Whether every sidecar was scraped."""
        return len(self.prometheus.query("up == 1")) == len(self.addresses)

    def await_alerts(self, names: set[str], again: Callable[[], None] = lambda: None) -> None:
        """Do *again* until the alerts *names* have fired."""
        deadline_s = monotonic() + ALERT_PATIENCE_S
        while missing := names - self.fired():
            assert monotonic() < deadline_s, f"not fired: {', '.join(sorted(missing))}"
            again()
            threading.Event().wait(PAUSE_S)

    def type_runbook(self) -> None:
        """Run what the runbook says to type: `curl` finds its metrics, `redis-cli` and `openssl` work."""
        pages = " ".join(f"http://{address}/metrics" for address in self.addresses)
        places = {
            "http://127.0.0.1:9193/metrics": pages,
            "127.0.0.1:9193": self.addresses[0],
            "127.0.0.1:9191": self.workers.sidecar.event("supervising")["grpc"][0],
            "redis://127.0.0.1:6379": self.busy.redis.url,
            "acme-erp": "acme",
        }
        for line in runbook_commands():
            if line.startswith(TYPED) and "--latency-history" not in line:  # which does not end
                for place, own in places.items():
                    line = line.replace(place, own)
                command = ["sh", "-c", line]
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
                )
                assert done.returncode == 0 and done.stdout, (line, done)

    def fired(self) -> set[str]:
        """The alerts that have fired so far."""
        found = self.prometheus.query('last_over_time(ALERTS{alertstate="firing"}[1h])')
        return {row["metric"]["alertname"] for row in found}


def _await_result(prometheus: Prometheus, query: str) -> None:
    """Wait until *query* returns something."""
    eventually(lambda: prometheus.query(query), what=query)


def signal_process(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that this test started."""
    os.kill(pid, number)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process for the time of the block."""
    signal_process(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_process(pid, signal.SIGCONT)


def rules_of(prometheus: Prometheus) -> list[dict[str, Any]]:
    """All rules with their state."""
    groups: list[dict[str, Any]] = prometheus.ask("rules").get("groups", [])
    return [rule for group in groups for rule in group["rules"]]

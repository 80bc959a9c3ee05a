"""
Draws the Grafana dashboard from a real run: `make dashboard-picture` writes docs/operate/dashboard.svg.

A sidecar with two workers, its registry and its buckets in Redis, serves six integrations for some minutes,
and a Prometheus scrapes it. Within that time a batch job goes over its limit, a partner calls from a foreign
address, an integration asks beyond its scope, somebody guesses keys, a worker is killed, and Redis stands
still. Then the queries of the dashboard are sent to that Prometheus. Grafana itself does not run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import yaml
from envoy.extensions.common.ratelimit.v3.ratelimit_pb2 import RateLimitDescriptor
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest

from deploy.demo.calling import Client
from deploy.demo.drawing import Curve, Span, draw
from deploy.demo.programs import Program, free_port
from deploy.demo.prometheus import RATE_INTERVAL_S, Prometheus
from deploy.demo.sidecar import ROUTES, Owner, write_registry
from sidecar.cli.check_client import Asker, AskError
from sidecar.domain.api_keys import generate_api_key
from sidecar.services.ext_authz_client import check_request
from sidecar.services.rls import SHOULD_RATE_LIMIT

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "sidecar.json"
PICTURE = ROOT / "docs" / "operate" / "dashboard.svg"
TITLE = "Sidecar. Drawn by deploy/demo/dashboard.py from the queries of the dashboard, not by Grafana."
DURATION_S = 360.0
STEPS = 120
COMMAND = (sys.executable, "-m", "sidecar.cli")
OUTAGE = (0.72, 0.76)
"""When Redis stands still, as shares of the duration."""
KILL_AT = 0.4
Fields = dict[str, Any]


class Plan:
    """An integration and its requests: *base* per second, and *more* between two shares of the time."""

    def __init__(
        self,
        id: str,
        base: float,
        more: float = 0.0,
        between: tuple[float, float] = (0.0, 1.0),
        method: str = "GET",
        path: str = "/v1/orders/7",
        address: str = "10.0.0.7",
        **fields: Any,
    ) -> None:
        """*fields* are those of the integration's record."""
        self.id, self.method, self.path, self.address = id, method, path, address
        self.fields: Fields = {"scopes": ["orders:read", "inventory:read"], "rate_limit_rpm": 6_000, **fields}
        self._base, self._more, self._between = base, more, between

    def rate_per_s(self, share: float) -> float:
        """Requests per second, which rise and fall slowly."""
        more = self._more if self._between[0] <= share < self._between[1] else 0.0
        return (self._base + more) * (1 + 0.25 * math.sin(2 * math.pi * 3 * share + len(self.id)))


PLANS = (
    Plan("storefront", 40, 25, (0.5, 0.7)),
    Plan("warehouse", 25, path="/v1/inventory/42"),
    Plan("mobile-app", 15, 20, (0.25, 0.55)),
    Plan("batch-job", 0.5, 12, (0.2, 0.6), rate_limit_rpm=300, burst=60),
    Plan("partner-edi", 4, rate_limit_rpm=600, ip_allowlist=["10.0.0.0/8"]),
    Plan("reports", 1.6, rate_limit_rpm=120, burst=40, on_store_error="local"),
)
STRANGERS = (
    Plan("partner-edi", 0, 3, (0.35, 0.5), address="198.51.100.9"),
    Plan("reports", 0, 2, (0.15, 0.3), method="POST", path="/v1/orders"),
    Plan("", 0.1, 8, (0.6, 0.68)),
)
"""Requests that policy refuses: from a foreign address, beyond the scope, with invented keys."""


class Caller(threading.Thread):
    """Sends the requests of one plan."""

    def __init__(self, target: str, key: str, plan: Plan, started_s: float, duration_s: float) -> None:
        """Send to *target* from *started_s* on, a monotonic time."""
        super().__init__(daemon=True)
        self._target, self._key, self._plan = target, key, plan
        self._started_s, self._duration_s = started_s, duration_s
        self.is_over = threading.Event()

    def run(self) -> None:
        """Send until `is_over`."""
        due_s = time.monotonic()
        with Asker(self._target) as asker:
            while not self.is_over.wait(max(0.0, due_s - time.monotonic())):
                share = (time.monotonic() - self._started_s) / self._duration_s
                rate_per_s = self._plan.rate_per_s(share)
                due_s = max(due_s, time.monotonic() - 1) + 1 / max(0.2, rate_per_s)
                if rate_per_s <= 0:
                    continue
                headers = {"x-api-key": self._key or generate_api_key().api_key}
                with contextlib.suppress(AskError):
                    asker.ask(check_request(self._plan.method, self._plan.path, headers, self._plan.address))


class WatchedSidecar:
    """The sidecar with its Redis, and what befalls them."""

    def __init__(self, folder: Path, parts: ExitStack) -> None:
        """Start both, with the integrations of `PLANS`; *parts* ends them."""
        self._folder = folder
        port, self.target, self.admin = free_port(), f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        redis = [
            "redis-server",
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(folder),
        ]
        self._redis = parts.enter_context(Program("redis", redis, folder))
        self._redis.wait_for(lambda: "eady to accept" in self._redis.printed(), "it accepts connections")
        self.owners = {plan.id: Owner(plan.id, plan.id.title(), **plan.fields) for plan in PLANS}
        write_registry(folder / "integrations.yaml", list(self.owners.values()))
        settings = {
            "listen": {"grpc": self.target, "admin": self.admin},
            "store": f"redis://127.0.0.1:{port}",
            "workers": 2,
            "routes": list(ROUTES),
            "invalid_keys_per_minute": 30,
            "rate_limits": str(ROOT / "deploy" / "example" / "rate_limits"),
        }
        (folder / "sidecar.yaml").write_text(yaml.safe_dump(settings))
        self._token = self.run("admin", "bootstrap", "--id", "ann").strip()
        self.run("registry", "push", "integrations.yaml", "--yes")
        serve = [*COMMAND, "serve"]
        self._program = parts.enter_context(Program("sidecar", serve, folder, self._environment()))
        self._program.wait_for(lambda: '"supervising"' in self._program.printed(), "it serves")

    def _environment(self) -> dict[str, str]:
        return {
            "SIDECAR_CONFIG": str(self._folder / "sidecar.yaml"),
            "SIDECAR_SERVER": f"http://{self.admin}",
            "SIDECAR_ADMIN_TOKEN": getattr(self, "_token", ""),
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *arguments: str) -> str:
        """Run a command of administrators; return what it printed."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env={**os.environ, **self._environment()},
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def ask_admin(self) -> None:
        """A page of an administrator, and now and then somebody without a token."""
        for token in (self._token, self._token, ""):
            client = Client(port=int(self.admin.rpartition(":")[2]))
            client.send("GET", "/v1/integrations", [("authorization", f"Bearer {token}")])
            client.close()

    def limit_rates(self) -> None:
        """Ask the rate-limit service as an Envoy would."""
        entry = RateLimitDescriptor.Entry(key="remote_address", value="198.51.100.7")
        request = RateLimitRequest(domain="shop", descriptors=[RateLimitDescriptor(entries=[entry])])
        with grpc.insecure_channel(self.target) as channel:
            call = channel.unary_unary(SHOULD_RATE_LIMIT, RateLimitRequest.SerializeToString, None)
            for _ in range(40):
                with contextlib.suppress(grpc.RpcError):
                    call(request, timeout=1)

    def kill_worker(self) -> None:
        """Kill one worker; its successor serves within a second."""
        lines = [line for line in self._program.printed().splitlines() if '"worker started"' in line]
        os.kill(json.loads(lines[-1])["pid"], signal.SIGKILL)

    @contextlib.contextmanager
    def redis_stands_still(self) -> Iterator[None]:
        """Redis is stopped for the time of the block."""
        self._redis.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._redis.signal(signal.SIGCONT)


def live(sidecar: WatchedSidecar, duration_s: float) -> None:
    """Let the integrations call for *duration_s*, and everything else happen at its time."""
    started_s = time.monotonic()
    keys = {id: owner.key.api_key for id, owner in sidecar.owners.items()}
    callers = [
        Caller(sidecar.target, keys.get(plan.id, ""), plan, started_s, duration_s)
        for plan in (*PLANS, *STRANGERS)
    ]
    never = threading.Event()

    def wait_until(share: float) -> None:
        while time.monotonic() < started_s + share * duration_s:
            sidecar.ask_admin()
            sidecar.limit_rates()
            never.wait(3.0)

    for caller in callers:
        caller.start()
    wait_until(KILL_AT)
    sidecar.kill_worker()
    sidecar.run("limit", "raise", "batch-job", "600", "--until", "1h", "--reason", "catching up")
    wait_until(OUTAGE[0])
    with sidecar.redis_stands_still():
        never.wait((OUTAGE[1] - OUTAGE[0]) * duration_s)
    wait_until(1.0)
    for caller in callers:
        caller.is_over.set()


def curves_of(prometheus: Prometheus, panel: dict[str, Any], span: Span) -> list[Curve]:
    """The series of all queries of *panel*, under the names of its legend."""
    curves = []
    step_s = (span.end_s - span.start_s) / STEPS
    for target in panel.get("targets", ()):
        for series in prometheus.query_range(target["expr"], *span, step_s, RATE_INTERVAL_S):
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            points = [(at_s, float(value)) for at_s, value in series["values"] if value != "NaN"]
            if panel["type"] == "stat" or any(value for _, value in points):
                curves.append(Curve(re.sub(r"{{\w+}}", "", name), points))
    return curves


def main(arguments: list[str]) -> int:
    """Run, ask and draw; *arguments* may name the number of seconds and the file to write."""
    duration_s = float(arguments[0]) if arguments else DURATION_S
    picture = Path(arguments[1]) if len(arguments) > 1 else PICTURE
    with tempfile.TemporaryDirectory(prefix="sidecar-dashboard-") as name, ExitStack() as parts:
        sidecar = WatchedSidecar(Path(name), parts)
        prometheus = parts.enter_context(Prometheus(Path(name), [sidecar.admin]))
        start_s = time.time()
        live(sidecar, duration_s)
        span = Span(start_s, time.time())
        panels = json.loads(DASHBOARD.read_text())["panels"]
        curves = [curves_of(prometheus, panel, span) for panel in panels]
        title = TITLE
        picture.write_text(draw(title, panels, curves, span))
    print(f"{picture}: {picture.stat().st_size / 1_000:.0f} kB, {sum(map(len, curves))} series")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The servers of a run: one that runs already, or sidecars, Redis and nginx that the harness starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPException
from ipaddress import ip_address
from multiprocessing import get_context
from pathlib import Path
from time import monotonic_ns
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.demo.proxies import Proxy
from loadtest.bench.admin_calls import AdminCalls
from loadtest.bench.processes import BenchError, RunningSidecar, free_port, running_sidecar
from loadtest.driver.targets import Target, parse_target
from loadtest.harness.scenario import EventSettings, Scenario, TargetSettings
from loadtest.harness.stores import Store
from loadtest.harness.suspensions import Suspension, Suspensions
from loadtest.harness.tally import Focus
from loadtest.harness.workload import Keys, make_keys, read_keys, registry_records

BATCH = 1_000
BOOTSTRAP_TIMEOUT_S = 60.0
RETRY_S = 0.02
LOOPBACK = "127.0.0.1"
ROUTES = [
    {"methods": ["GET"], "path": "/v1/orders/{id}", "scope": "orders:read"},
    {"methods": ["GET"], "path": "/v1/refunds/{id}", "scope": "finance:read"},
]


@dataclass
class Stage:
    """
    What a run drives.

    `groups` returns the pids of each group of processes; `actions` carry out events, by their names;
    `is_over` is set when the load has ended. `outages` and `failovers` are those of `stores.Store`;
    `final_faults` returns what is wrong with the servers after the run.
    """

    targets: Sequence[Target]
    keys: Keys
    groups: Callable[[], Mapping[str, Sequence[int]]] = dict
    actions: dict[str, Callable[[EventSettings], object]] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)
    focus: Focus | None = None
    suspensions: Suspensions = field(default_factory=Suspensions)
    outages: Sequence[tuple[int, int]] = ()
    failovers: Callable[[], int] = lambda: 0
    final_faults: Callable[[], Sequence[str]] = list


def split_cores() -> tuple[list[int], list[int]]:
    """Return the cores of the servers and of the drivers: half each, or all for both on a single core."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return cores[: half or 1], cores[half:]


@contextmanager
def staged(scenario: Scenario, server_cores: str = "") -> Iterator[Stage]:
    """
    Yield the servers of *scenario*, on *server_cores* in the form of `taskset`; stop them after the block.

    Raises:
        BenchError, RedisServerError, ScenarioError, ProgramError: a server does not start.
    """
    if scenario.target is not None:
        yield _foreign(scenario, scenario.target)
        return
    cores = server_cores or ",".join(map(str, split_cores()[0]))
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder, ExitStack() as stack:
        yield _Sidecars(scenario, Path(folder), cores, stack).stage()


def _foreign(scenario: Scenario, target: TargetSettings) -> Stage:
    keys = read_keys(target.keys) if target.keys else make_keys(scenario)
    groups = {"server": RunningSidecar(target.pid, "", "").pids} if target.pid else {}
    return Stage(
        [parse_target(target.address, target.ca)],
        keys,
        lambda: {name: pids() for name, pids in groups.items()},
    )


class _Sidecars:
    """Starts the servers of a scenario, and changes them during the load."""

    def __init__(self, scenario: Scenario, folder: Path, cores: str, stack: ExitStack) -> None:
        self._scenario = scenario
        self._folder = folder
        self._cores = cores
        self._stack = stack
        self._store: Store | None = None
        self._proxy: Proxy | None = None
        self._running: list[tuple[AbstractContextManager[RunningSidecar], RunningSidecar]] = []
        self._configs: list[tuple[Path, str, str]] = []
        self._keys = make_keys(scenario)
        self._suspensions = Suspensions()
        self._focus: Focus = get_context("spawn").RawValue("q", 0)
        self._is_over = threading.Event()
        self._token = ""

    def stage(self) -> Stage:
        if self._scenario.sidecar.store != "embedded":
            self._store = Store(self._scenario.sidecar.store, self._folder / "redis")
            self._stack.callback(self._store.stop)
        self._stack.callback(self._stop)
        listens = [self._write(number) for number in range(self._scenario.sidecar.count)]
        if self._scenario.sidecar.registry == "api":
            self._token = _bootstrap(self._configs[0][0])
        for config in self._configs:
            self._running.append(self._start(*config))
        if self._scenario.sidecar.registry == "api":
            self._create_integrations()
        if self._scenario.sidecar.proxy:
            listens = [self._start_proxy(listens[0])]
        targets = [parse_target(listen, ca) for listen, ca in listens]
        actions: dict[str, Callable[[EventSettings], object]] = {
            "restart-sidecars": self._restart,
            "suspend": self._suspend,
        }
        made = Stage(
            targets, self._keys, self._groups, actions, self._is_over, self._focus, self._suspensions
        )
        if (store := self._store) is not None:
            made.outages, made.failovers = store.outages, lambda: store.failovers
            for name, action in store.actions.items():
                actions[name] = partial(_ignoring_event, action)
        if self._token:
            made.final_faults = self._registry_faults
        return made

    def _write(self, number: int) -> tuple[str, str]:
        """Write the configuration of one sidecar; return the address for the load, and its certificate."""
        scenario, folder = self._scenario, self._folder
        listen, ca = f"{LOOPBACK}:{free_port()}", ""
        if scenario.connections.transport == "unix":
            listen = f"unix:{folder}/sidecar-{number}.sock"
        item: Any = listen
        if scenario.connections.tls:
            ca, key = _certificate(folder)
            item = {"address": listen, "tls": {"cert": ca, "key": key}}
        is_http = scenario.protocol in ("forward_auth", "http")
        grpc = f"{LOOPBACK}:{free_port()}" if is_http else item
        admin = f"{LOOPBACK}:{free_port()}"
        settings = {
            "listen": {"grpc": [grpc], "admin": admin, **({"http": [item]} if is_http else {})},
            "client_ip": {"header": None if is_http else "x-client-ip"},
            "routes": ROUTES,
            "log": {"level": "warning", "refusals": "none"},
            "workers": scenario.sidecar.workers,
            **self._store_settings(),
            **scenario.sidecar.settings,
        }
        config = folder / f"sidecar-{number}.yaml"
        config.write_text(yaml.safe_dump(settings))
        self._configs.append((config, str(grpc), admin))
        if listen.startswith("unix:"):
            return f"{listen}:/auth/nginx" if is_http else listen, ca
        scheme = ("http" if is_http else "grpc") + "s" * scenario.connections.tls
        return f"{scheme}://{listen}/auth/nginx", ca

    def _store_settings(self) -> dict[str, Any]:
        """Return the settings of store, registry and rate limits, and write their files."""
        scenario, folder = self._scenario, self._folder
        settings: dict[str, Any] = {"store": self._store.url} if self._store is not None else {}
        if scenario.protocol == "rls":
            limits = folder / "limits"
            limits.mkdir(exist_ok=True)
            rate = {"unit": scenario.limits.unit, "requests_per_unit": scenario.limits.rpm}
            rules = {"domain": "shop", "descriptors": [{"key": "user", "rate_limit": rate}]}
            (limits / "shop.yaml").write_text(yaml.safe_dump(rules))
            settings["rate_limits"] = {"path": str(limits), "algorithm": scenario.limits.algorithm}
        if scenario.sidecar.registry == "api":
            return settings if self._store is not None else {**settings, "registry": "sqlite:registry.sqlite"}
        registry = folder / "registry.yaml"
        if not registry.exists():
            records = registry_records(scenario, self._keys)
            dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
            registry.write_text(yaml.dump({"integrations": records}, Dumper=dumper, sort_keys=False))
        return {**settings, "registry": str(registry)}

    def _start(
        self, config: Path, grpc: str, admin: str
    ) -> tuple[AbstractContextManager[RunningSidecar], RunningSidecar]:
        running = running_sidecar(config, grpc, admin, self._cores)
        return running, running.__enter__()

    def _stop(self) -> None:
        for running, _ in self._running:
            running.__exit__(None, None, None)

    def _restart(self, event: EventSettings) -> None:
        for number, (running, _) in enumerate(self._running):
            running.__exit__(None, None, None)
            self._running[number] = self._start(*self._configs[number])

    def _start_proxy(self, sidecar: tuple[str, str]) -> tuple[str, str]:
        app = free_port()

        def edit(text: str) -> str:
            """Serve the API in the same nginx, because a slow one would be the limit."""
            api = f'server {{ listen {LOOPBACK}:{app}; location / {{ return 200 "ok"; }} }}'
            return text.replace("http {", f"http {{ keepalive_requests 1000000; {api}", 1)

        target = parse_target(sidecar[0])
        address = f"unix:{target.unix}" if target.unix else target.authority
        self._proxy = Proxy(self._scenario.sidecar.proxy, app, address, self._folder, edit)
        self._stack.callback(self._proxy.stop)
        subprocess.run(
            ["taskset", "-acp", self._cores, str(self._proxy.pid)], check=True, capture_output=True
        )
        return f"http://{LOOPBACK}:{self._proxy.port}/", ""

    def _create_integrations(self) -> None:
        """Create the integrations through the admin API, as an administrator does."""
        records = registry_records(self._scenario, self._keys)
        calls = AdminCalls(self._running[0][1].admin, self._token)
        for first in range(0, len(records), BATCH):
            calls.call("POST", "/changes", {"changes": list(map(_creation, records[first : first + BATCH]))})
        calls.close()

    def _suspend(self, event: EventSettings) -> None:
        """Suspend integrations until all are, or the load has ended; several administrators share them."""
        ids = [record["id"] for record in registry_records(self._scenario, self._keys)]
        numbers = iter(event.integrations)
        with ThreadPoolExecutor(event.administrators) as pool:
            administer = partial(self._administer, numbers, ids, event.pause_s)
            for future in [pool.submit(administer) for _ in range(event.administrators)]:
                future.result()

    def _administer(self, numbers: Iterator[int], ids: Sequence[str], pause_s: float) -> None:
        for number in numbers:
            self._focus.value = number
            if self._is_over.wait(pause_s):
                return
            called_ns, answer = monotonic_ns(), None
            while answer is None and not self._is_over.is_set():
                answer = self._try_to_suspend(ids[number])
            if answer is not None:
                made = Suspension(number, called_ns, monotonic_ns(), answer["lacks_replicas"])
                self._suspensions.made.append(made)
            self._is_over.wait(pause_s)

    def _try_to_suspend(self, integration_id: str) -> dict[str, Any] | None:
        """Suspend; None = the admin API reported an error, so it may have happened or not."""
        calls = AdminCalls(self._running[0][1].admin, self._token)
        try:
            path = f"/integrations/{integration_id}/suspend"
            answer: dict[str, Any] = calls.call("POST", path, {"reason": "load test"})
            return answer
        except (BenchError, OSError, HTTPException):
            self._suspensions.errors += 1
            self._is_over.wait(RETRY_S)
            return None
        finally:
            calls.close()

    def _registry_faults(self) -> list[str]:
        """Return what is wrong with the audit log, which failovers must not damage."""
        calls = AdminCalls(self._running[0][1].admin, self._token)
        found = calls.call("GET", "/audit/verify")
        calls.close()
        return [] if found["is_intact"] else [f"the audit log is damaged: {found}"]

    def _groups(self) -> Mapping[str, Sequence[int]]:
        groups = {"sidecar": [pid for _, sidecar in self._running for pid in sidecar.pids()]}
        if self._store is not None:
            groups["redis"] = self._store.pids
        if self._proxy is not None:
            groups["nginx"] = RunningSidecar(self._proxy.pid, "", "").pids()
        return groups


def _ignoring_event(action: Callable[[], None], event: EventSettings) -> None:
    action()


def _bootstrap(config: Path) -> str:
    """Return the token of the registry's first administrator."""
    command = [sys.executable, "-m", "sidecar.cli", "admin", "bootstrap", "--id", "loadtest"]
    made = subprocess.run(
        [*command, "--config", str(config)],
        capture_output=True,
        text=True,
        check=True,
        timeout=BOOTSTRAP_TIMEOUT_S,
    )
    return made.stdout.strip()


def _creation(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "scopes", "rate_limit_rpm", "burst", "credentials")
    return {
        "action": "integration.create",
        "integration_id": record["id"],
        **{name: record[name] for name in kept},
    }


def _certificate(folder: Path) -> tuple[str, str]:
    """Write a self-signed certificate for the loopback; return the paths of certificate and key."""
    certificate, key_file = folder / "server.pem", folder / "server.key"
    if not certificate.exists():
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loadtest")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK)), x509.DNSName("localhost")])
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=7))
        signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        key_file.chmod(0o600)
    return str(certificate), str(key_file)

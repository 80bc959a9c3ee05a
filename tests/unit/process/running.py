"""A real `sidecar serve` process, watched through its log lines."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.programs import Program
from sidecar.cli.check_client import Asker
from sidecar.domain.api_keys import NewApiKey, generate_api_key
from sidecar.services.ext_authz_client import Checked, check_request
from tests.waiting import PATIENCE_S, eventually

SERVE = (sys.executable, "-m", "sidecar.cli", "serve")
ROUTES = [{"path": "/v1/**", "scope": "none"}]
STORE_TIMEOUT_MS = 5_000


class Running(Program):
    """One process, and the events in its log."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        """Start `sidecar serve` with *arguments*."""
        super().__init__("sidecar", [*SERVE, *arguments], folder, environment)

    def events(self, message: str) -> list[dict[str, Any]]:
        """The log lines with this message, so far."""
        lines = [line for line in self.printed().splitlines() if line.startswith("{")]
        events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in events if event["message"] == message]

    def event(self, message: str, number: int = 1) -> dict[str, Any]:
        """Wait for the log line with this message, for the *number*-th of them."""
        return self.wait_for(
            lambda: self.events(message)[number - 1 : number], f"the log says {message!r} ({number})"
        )[0]

    def admin(self) -> str:
        """Where the admin listener is, whichever process has it."""

        def addresses() -> list[str]:
            events = (*self.events("supervising"), *self.events("serving"))
            return [address for event in events for address in event["admin"]]

        return self.wait_for(addresses, "the log names the admin listener")[0]


class Configured:
    """A configuration on free ports with one integration, and what to do with it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """
        Write it into *folder*; *settings* are keys of the file.

        A store that is not given a timeout gets one that a busy machine does not exceed.
        """
        if "store" in settings:
            settings = {"store_timeout_ms": STORE_TIMEOUT_MS, **settings}
        self.folder = folder
        self.file = folder / "sidecar.yaml"
        self.registry = folder / "registry.yaml"
        self.key: NewApiKey = generate_api_key()
        listen = {"grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        self.file.write_text(
            yaml.safe_dump({"listen": listen, "registry": "registry.yaml", "routes": ROUTES, **settings})
        )
        self.write_registry()

    def write_registry(self, **fields: Any) -> None:
        """Replace the registry; *fields* are those of its one integration."""
        credential = {"id": self.key.credential_id, "digest": self.key.digest}
        record = {"id": "acme", "name": "Acme", "credentials": [credential], **fields}
        draft = self.registry.with_suffix(".new")
        draft.write_text(yaml.safe_dump({"integrations": [record]}))
        draft.replace(self.registry)

    def serve(self, *arguments: str, **environment: str) -> Running:
        """Start it."""
        return Running(self.folder, "--config", str(self.file), *arguments, **environment)

    def ask(self, target: str) -> Checked:
        """Ask the sidecar at *target* about a request of the integration."""
        headers = {"x-api-key": self.key.api_key}
        with Asker(target, timeout_s=PATIENCE_S) as asker:
            return asker.ask(check_request("GET", "/v1/orders", headers, "127.0.0.1"))


def admin_get(address: str, path: str) -> tuple[int, str]:
    """Ask an admin listener; 0 = nobody is there."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


def metric(address: str, series: str) -> float:
    """The value of one metric."""
    for line in admin_get(address, "/metrics")[1].splitlines():
        name, _, value = line.rpartition(" ")
        if name == series:
            return float(value)
    raise AssertionError(f"no metric {series}")


def eventually_metric(address: str, series: str, value: float) -> None:
    """Wait until a metric has this value."""
    eventually(lambda: metric(address, series) == value, what=f"{series} is {value}")

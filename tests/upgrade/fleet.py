"""Sidecars of two builds that serve one address after another, an administrator, and callers."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.programs import Program, free_port
from sidecar.cli.check_client import Asker, AskError
from sidecar.services.ext_authz_client import check_request
from tests.unit.process.running import admin_get

COMMAND_TIMEOUT_S = 120.0
START_TIMEOUT_S = 120.0
PAUSE_S = 0.005
CALLS_PER_STEP = 200


class InstalledSidecar(Program):
    """`sidecar serve` of one build."""

    def __init__(self, command: Path, place: UpgradePlace, name: str, takes_over: bool) -> None:
        """Start it at the addresses of *place* and wait until it serves."""
        options = ["--take-over"] if takes_over else []
        super().__init__(name, [str(command), "serve", "--config", str(place.config), *options], place.folder)
        self.wait_for(lambda: '"message": "serving"' in self.printed(), "it serves", START_TIMEOUT_S)


class UpgradePlace:
    """A configuration, and the commands of administrators who use it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """Write the configuration into *folder*."""
        self.folder = folder
        folder.mkdir(parents=True)
        self.target = f"127.0.0.1:{free_port()}"
        self.admin = f"127.0.0.1:{free_port()}"
        self.config = folder / "sidecar.yaml"
        listen = {"grpc": self.target, "admin": self.admin}
        routes = [{"path": "/v1/**", "scope": "none"}]
        self.config.write_text(yaml.safe_dump({"listen": listen, "routes": routes, **settings}))
        self.token = ""
        self.keys: dict[str, str] = {}

    def run(self, command: Path, *arguments: str) -> str:
        """
        Run a command of the build *command*; return its standard output.

        Raises:
            AssertionError: it failed.
        """
        environment = {"SIDECAR_ADMIN_TOKEN": self.token, "SIDECAR_SERVER": f"http://{self.admin}"}
        done = subprocess.run(
            [str(command), *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def bootstrap(self, command: Path) -> None:
        """Create the first administrator."""
        options = ("--id", "ann", "--config", str(self.config))
        self.token = self.run(command, "admin", "bootstrap", *options).strip()

    def create(self, command: Path, id: str, limit_rpm: int, burst: int) -> None:
        """Create an integration with a key."""
        quota = ("--rate-limit-rpm", str(limit_rpm), "--burst", str(burst))
        options = ("--name", id.title(), *quota, "--issue-credential", "--json")
        self.keys[id] = json.loads(self.run(command, "integrations", "create", id, *options))["api_key"]

    def reasons(self, id: str, count: int = 1, target: str = "") -> list[str]:
        """Why each of *count* requests of *id* was allowed or refused."""
        request = check_request("GET", "/v1/orders", {"x-api-key": self.keys[id]}, "127.0.0.1")
        with Asker(target or self.target) as asker:
            return [asker.ask(request).reason for _ in range(count)]

    def version(self) -> str:
        """What /metrics says of the build that has the admin listener."""
        page = admin_get(self.admin, "/metrics")[1]
        return next(line for line in page.splitlines() if line.startswith("sidecar_build_info"))


class SteadyCalls:
    """Requests of one integration, one after another in a thread, that must all be allowed."""

    def __init__(self, place: UpgradePlace, id: str) -> None:
        """Ask as *id*, whose limit no load reaches."""
        self.calls = 0
        self.faults: list[str] = []
        self._place, self._id = place, id
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> SteadyCalls:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._is_over.set()
        self._thread.join(COMMAND_TIMEOUT_S)

    def go_on(self) -> None:
        """Wait for some more answers."""
        goal, deadline_s = self.calls + CALLS_PER_STEP, time.monotonic() + COMMAND_TIMEOUT_S
        while self.calls < goal and not self.faults:
            assert time.monotonic() < deadline_s, "the load stands still"
            self._is_over.wait(PAUSE_S)

    def _ask(self) -> None:
        request = check_request("GET", "/v1/orders", {"x-api-key": self._place.keys[self._id]}, "127.0.0.1")
        with Asker(self._place.target) as asker:
            while not self._is_over.wait(PAUSE_S):
                try:
                    answer = asker.ask(request)
                except AskError as error:
                    self.faults.append(str(error))
                    return
                self.calls += 1
                if not answer.is_allowed:
                    self.faults.append(answer.reason)

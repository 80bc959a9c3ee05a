"""A sidecar with its control plane, administrators who use the API, and integrations behind an Envoy."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.demo.calling import Answer, Client, send
from deploy.demo.envoy import TCP_CONFIG, running_envoy
from deploy.demo.sidecar import ReservedPort, Sidecar
from deploy.demo.upstream import running_upstream
from tests.e2e.stack import wait_long
from tests.unit.cli.test_cli import run

SQLITE = "sqlite:registry.sqlite"


def bootstrap(config: Path, id: str = "ann") -> str:
    """The token of the first administrator, made by the command."""
    made = run("admin", "bootstrap", "--id", id, "--config", str(config))
    assert made.exit_code == 0, made.output
    return made.stdout.strip()


class Administrator:
    """Somebody with a token, at the admin listener on a Unix socket."""

    def __init__(self, socket_path: str, token: str) -> None:
        """Nothing is connected before the first call."""
        self.token = token
        self._socket_path = socket_path

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> Answer:
        """One call of the API, on a separate connection."""
        pairs = [("authorization", f"Bearer {self.token}"), *headers.items()]
        content = None
        if body is not None:
            pairs.append(("content-type", "application/json"))
            content = json.dumps(body).encode()
        with contextlib.closing(Client(path=self._socket_path)) as client:
            return client.send(method, f"/v1{path}", pairs, content)

    def get(self, path: str) -> Any:
        """What the API answers."""
        answer = self.send("GET", path)
        assert answer.status == 200, answer
        return answer.json()

    def change(self, path: str, **body: Any) -> dict[str, Any]:
        """Make a change, which must be made and in force; what the API says of it."""
        answer = self.send("POST", path, body)
        assert answer.status in (200, 201), answer
        reported: dict[str, Any] = answer.json()
        assert reported.get("is_in_force", True), reported
        return reported

    def create(self, id: str, **fields: Any) -> str:
        """Create an integration; its API key."""
        made = self.change("/integrations", id=id, name=id.title(), issue_credential=True, **fields)
        key: str = made["api_key"]
        return key

    def colleague(self, id: str, role: str = "admin") -> Administrator:
        """Make another administrator."""
        made = self.change("/administrators", id=id, name=id.title(), role=role)
        return Administrator(self._socket_path, made["token"])


class ControlledStack:
    """Envoy before an API, asking a sidecar whose registry is a SQLite file; `ann` administers it."""

    def __init__(self) -> None:
        """Start all, and wait for each."""
        self._parts = ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="sidecar-e2e-"))
        self._parts.callback(shutil.rmtree, self.folder)
        try:
            app_port = self._parts.enter_context(running_upstream())
            port = ReservedPort()
            self._parts.callback(port.close)
            address = f"127.0.0.1:{port.number}"
            self.sidecar = Sidecar(self.folder, address, SQLITE)
            self._parts.callback(self.sidecar.stop)
            self.envoy = running_envoy(TCP_CONFIG, app_port, address, self.folder, wait_long)
            self._parts.callback(self.envoy.stop)
            # Made by another process while the sidecar runs: it counts from the next call on.
            token = bootstrap(self.folder / "sidecar.config.yaml")
            self.ann = Administrator(str(self.folder / "sidecar.sock"), token)
            # Before any suspension: whom its author lets in afterwards may not end it.
            self.bob = self.ann.colleague("bob")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop everything, in reverse order."""
        self._parts.close()

    def get(self, key: str, path: str = "/v1/inventory/42") -> Answer:
        """GET *path* through Envoy."""
        return send(self.envoy.port, "GET", path, [("x-api-key", key)])

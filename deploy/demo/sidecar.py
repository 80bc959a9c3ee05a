"""Runs a sidecar with a generated configuration and registry."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.calling import Answer, Client
from deploy.demo.programs import Program
from sidecar.domain.api_keys import NewApiKey, generate_api_key

ROUTES = (
    {"methods": "GET", "path": "/v1/inventory/**", "scope": "inventory:read"},
    {"methods": "GET", "path": "/v1/orders/{id}", "scope": "orders:read"},
    {"methods": "POST", "path": "/v1/orders", "scope": "orders:write"},
    {"path": "/v1/echo/**", "scope": "none"},
)
"""The routes of the demo's API; Envoy's route states the scope of /v1/finance."""

FINANCE = {"path": "/v1/finance/**", "scope": "finance:write"}
"""The route of /v1/finance for proxies other than Envoy."""


class ReservedPort:
    """
    A TCP port of 127.0.0.1 that no other program gets while this object exists.

    It is bound with SO_REUSEPORT and does not listen, so that several sidecars can share it during a
    take-over.
    """

    def __init__(self) -> None:
        """Take any free port."""
        self._socket = socket.socket()
        # Both options, so that an exclusive sidecar can bind the port.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Release the port."""
        self._socket.close()


class Owner:
    """An integration's registry record and its API key."""

    def __init__(self, id: str, name: str, *, expires_at: str | None = None, **fields: Any) -> None:
        """Generate a key; *fields* are those of a registry record."""
        self.id = id
        self.name = name
        self.key: NewApiKey = generate_api_key()
        self.fields = fields
        self._expires_at = expires_at

    @property
    def record(self) -> dict[str, Any]:
        """The record for a registry file, without the key."""
        credential = {"id": self.key.credential_id, "digest": self.key.digest}
        if self._expires_at is not None:
            credential["expires_at"] = self._expires_at
        return {"id": self.id, "name": self.name, "credentials": [credential], **self.fields}

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of its requests."""
        return [("x-api-key", self.key.api_key)]


def write_registry(path: Path, owners: Sequence[Owner]) -> None:
    """Replace the registry file atomically, as editors do."""
    draft = path.with_suffix(".new")
    draft.write_text(yaml.safe_dump({"integrations": [owner.record for owner in owners]}))
    draft.replace(path)


class Sidecar(Program):
    """A running `sidecar serve` with its gRPC listener at `address`; its admin listener is a Unix socket."""

    def __init__(
        self,
        folder: Path,
        address: str,
        registry: Path | str | None,
        name: str = "sidecar",
        takes_over: bool = False,
        http: str = "",
        **settings: Any,
    ) -> None:
        """
        Serve on *address* ('host:port' or 'unix:/path') and wait until it is ready.

        *http* is the address for forward auth; '' = none.

        *registry* is the setting of this name, None = the registry in the store. *settings* are other keys
        of the configuration file. Concurrent sidecars need different names; *takes_over* = another sidecar
        already serves *address*.

        Raises:
            ProgramError: the sidecar rejected the configuration or did not become ready.
        """
        self.address = address
        self.http = http
        self._admin_path = folder / f"{name}.sock"
        config = folder / f"{name}.config.yaml"
        listen: dict[str, Any] = {"grpc": address, "admin": f"unix:{self._admin_path}"}
        if http:
            listen["http"] = http
        defaults: dict[str, Any] = {"routes": list(ROUTES), "client_ip": {"header": "x-client-ip"}}
        if registry is not None:
            defaults["registry"] = str(registry)
        config.write_text(yaml.safe_dump({"listen": listen, **defaults, **settings}))
        command = [sys.executable, "-m", "sidecar.cli", "serve", "--config", str(config)]
        if takes_over:
            command.append("--take-over")
        super().__init__(name, command, folder)
        try:
            self.wait_for(self.is_ready, "being ready")
        except BaseException:
            self.stop()
            raise

    def is_ready(self) -> bool:
        """Return whether /readyz reports ready."""
        try:
            return self.admin("/readyz").status == 200
        except OSError:
            return False

    def admin(self, path: str) -> Answer:
        """Send a GET request to the admin listener."""
        client = Client(path=str(self._admin_path))
        try:
            return client.send("GET", path)
        finally:
            client.close()

    def metric(self, series: str) -> float:
        """Return the value of a metric, named with its labels as in /metrics; 0 = absent."""
        for line in self.admin("/metrics").body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return 0.0

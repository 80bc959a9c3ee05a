"""Runs the Envoy configurations of deploy/envoy/ on free ports."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.calling import Answer, send
from deploy.demo.programs import Program

CONFIGS = Path(__file__).resolve().parent.parent / "envoy"
TCP_CONFIG = CONFIGS / "envoy-tcp.yaml"
UNIX_CONFIG = CONFIGS / "envoy-uds.yaml"
WORKERS = 2
ACCESS_LOG_FLUSH_MS = 20

Document = dict[str, Any]
Edit = Callable[[Document], None]


class UnknownConfigError(Exception):
    """A configuration file lacks a part with an expected name."""


def load(config: Path) -> Document:
    """Parse a configuration file."""
    document: Document = yaml.safe_load(config.read_text())
    return document


def named(items: list[Document], name: str) -> Document:
    """
    Return the item of *items* with this name.

    Raises:
        UnknownConfigError: no item, or more than one, has the name.
    """
    found = [item for item in items if item["name"] == name]
    if len(found) != 1:
        raise UnknownConfigError(f"{len(found)} items are named {name}; exactly one must be")
    return found[0]


def ingress_http(document: Document) -> Document:
    """Return the HTTP connection manager of the `ingress` listener."""
    listener = named(document["static_resources"]["listeners"], "ingress")
    filters = listener["filter_chains"][0]["filters"]
    manager: Document = named(filters, "envoy.filters.network.http_connection_manager")["typed_config"]
    return manager


def ext_authz(document: Document) -> Document:
    """Return the ext_authz filter."""
    filters = ingress_http(document)["http_filters"]
    authz: Document = named(filters, "envoy.filters.http.ext_authz")["typed_config"]
    return authz


def cluster(document: Document, name: str) -> Document:
    """Return the cluster *name*."""
    return named(document["static_resources"]["clusters"], name)


def tcp_address(port: int) -> Document:
    """Return an Envoy address on 127.0.0.1; port 0 = any free port."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def placed(document: Document, app_port: int, sidecar: str) -> Document:
    """
    Return a copy of *document* that listens on free ports.

    It calls the sidecar at *sidecar*, 'host:port' or 'unix:/path', and forwards to 127.0.0.1:*app_port*.
    """
    document = copy.deepcopy(document)
    document["admin"]["address"] = tcp_address(0)
    named(document["static_resources"]["listeners"], "ingress")["address"] = tcp_address(0)
    host, _, rest = sidecar.partition(":")
    address = {"pipe": {"path": rest}} if host == "unix" else tcp_address(int(rest))
    for name, where in (("app", tcp_address(app_port)), ("sidecar", address)):
        endpoints = cluster(document, name)["load_assignment"]["endpoints"]
        endpoints[0]["lb_endpoints"] = [{"endpoint": {"address": where}}]
    return document


class Envoy(Program):
    """A running Envoy; `port` is the port for clients, `admin_port` that of the admin interface."""

    def __init__(self, document: Document, folder: Path, name: str = "envoy") -> None:
        """
        Run *document* and wait until it listens.

        Raises:
            ProgramError: Envoy rejected the configuration or did not become ready.
        """
        config, admin_address = folder / f"{name}.yaml", folder / f"{name}.admin"
        config.write_text(yaml.safe_dump(document))
        admin_address.unlink(missing_ok=True)
        super().__init__(
            name,
            [
                str(Path(sys.executable).with_name("envoy")),
                "--config-path", str(config),
                "--admin-address-path", str(admin_address),
                "--concurrency", str(WORKERS),
                "--disable-hot-restart",
                "--file-flush-interval-msec", str(ACCESS_LOG_FLUSH_MS),
                "--log-level", "warning",
                "--drain-time-s", "1",
            ],
            folder,
        )  # fmt: skip
        try:
            self.admin_port = self.wait_for(lambda: _port_in(admin_address), "telling its admin port")
            self.wait_for(self._is_live, "being ready")
            self.port = self._listener_port()
        except BaseException:
            self.stop()
            raise

    def admin(self, path: str) -> Answer:
        """Send a GET request to the admin interface."""
        return send(self.admin_port, "GET", path)

    def stat(self, name: str) -> int:
        """Return a counter or gauge; 0 if it does not exist yet."""
        stats = self.admin(f"/stats?format=json&usedonly&filter=^{name}$").json()["stats"]
        return sum(stat["value"] for stat in stats if stat.get("name") == name)

    def _is_live(self) -> bool:
        try:
            return self.admin("/ready").status == 200
        except OSError:
            return False

    def _listener_port(self) -> int:
        statuses = self.admin("/listeners?format=json").json()["listener_statuses"]
        port: int = named(statuses, "ingress")["local_address"]["socket_address"]["port_value"]
        return port


def _port_in(admin_address: Path) -> int:
    try:
        return int(admin_address.read_text().rpartition(":")[2])
    except (OSError, ValueError):
        return 0


def running_envoy(
    config: Path, app_port: int, sidecar: str, folder: Path, edit: Edit | None = None, name: str = "envoy"
) -> Envoy:
    """Run *config* between *sidecar* and the API at *app_port*; *edit* may change the document."""
    document = placed(load(config), app_port, sidecar)
    if edit is not None:
        edit(document)
    return Envoy(document, folder, name)

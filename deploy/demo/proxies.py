"""Runs the configurations of deploy/nginx, deploy/caddy and deploy/haproxy on free ports."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.programs import Program, free_port

DEPLOY = Path(__file__).resolve().parent.parent
LISTEN, APP, SIDECAR = "127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:9192"
"""The addresses in the files, which are replaced."""

Edit = Callable[[str], str]


@dataclass(frozen=True)
class ProxyKind:
    """
    One proxy with one configuration.

    `command` runs `file`, whose path replaces `{config}`; `beside` are further files that it loads; `unix`
    is the proxy's form of the sidecar's Unix socket; the command `version` prints the proxy's version.
    """

    file: str
    command: tuple[str, ...]
    unix: str
    version: tuple[str, ...]
    beside: tuple[str, ...] = ()


_NGINX = ("nginx", "-p", "{folder}", "-c", "{config}", "-g", "daemon off;")

KINDS: Mapping[str, ProxyKind] = {
    "nginx": ProxyKind("nginx/nginx.conf", _NGINX, "unix:{path}", ("nginx", "-v")),
    "nginx-accel": ProxyKind("nginx/nginx-accel.conf", _NGINX, "unix:{path}", ("nginx", "-v")),
    "caddy": ProxyKind(
        "caddy/Caddyfile",
        ("caddy", "run", "--adapter", "caddyfile", "--config", "{config}"),
        "unix/{path}",
        ("caddy", "version"),
    ),
    "haproxy": ProxyKind(
        "haproxy/haproxy.cfg",
        ("haproxy", "-C", "{folder}", "-f", "{config}"),
        "unix@{path}",
        ("haproxy", "-v"),
        beside=("haproxy/sidecar-auth.lua",),
    ),
}
"""By the value of `make demo PROXY=`, in addition to 'envoy'."""


class Proxy(Program):
    """A running proxy; `port` is the port for clients."""

    def __init__(
        self, name: str, app_port: int, sidecar: str, folder: Path, edit: Edit | None = None
    ) -> None:
        """
        Run the configuration of the kind *name* and wait until it listens.

        It calls the sidecar at *sidecar*, 'host:port' or 'unix:/path', and forwards to 127.0.0.1:*app_port*;
        *edit* may change the file's text.

        Raises:
            ProgramError: the proxy rejected the configuration or does not listen.
        """
        self.port = free_port()
        kind = KINDS[name]
        config = folder / f"{name}.conf"
        text = (DEPLOY / kind.file).read_text()
        for old, new in _replacements(kind, self.port, app_port, sidecar, folder).items():
            text = text.replace(old, new)
        config.write_text(text if edit is None else edit(text))
        for path in kind.beside:
            (folder / Path(path).name).write_text((DEPLOY / path).read_text())
        command = [part.format(config=config, folder=folder) for part in kind.command]
        super().__init__(name, command, folder, _environment(sidecar, folder))
        try:
            self.wait_for(self._listens, "listening")
        except BaseException:
            self.stop()
            raise

    def version(self) -> str:
        """Return the program and its version, such as 'nginx 1.22.1'."""
        result = subprocess.run(
            KINDS[self.name].version, capture_output=True, text=True, check=True, timeout=20
        )
        number = re.search(r"[0-9]+(\.[0-9]+)+", result.stdout + result.stderr)
        return f"{KINDS[self.name].version[0]} {number[0] if number else '?'}"

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _replacements(kind: ProxyKind, port: int, app_port: int, sidecar: str, folder: Path) -> dict[str, str]:
    """Return the texts in the file to replace, and their replacements."""
    scheme, _, path = sidecar.partition(":")
    return {
        LISTEN: f"127.0.0.1:{port}",
        APP: f"127.0.0.1:{app_port}",
        SIDECAR: kind.unix.format(path=path) if scheme == "unix" else sidecar,
        "/run/nginx-sidecar.pid": str(folder / "nginx.pid"),
    }


def _environment(sidecar: str, folder: Path) -> dict[str, str]:
    """Return the environment: for HAProxy's Lua action, and a home folder for Caddy's state."""
    scheme, _, path = sidecar.partition(":")
    environment = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    if scheme == "unix":
        return {**environment, "SIDECAR_DST": f"unix@{path}"}
    return {**environment, "SIDECAR_URL": f"http://{sidecar}/auth/haproxy"}

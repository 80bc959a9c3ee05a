"""A sidecar behind a real proxy in front of an API, and the integrations that call it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.calling import Answer, Header, send
from deploy.demo.envoy import (
    TCP_CONFIG,
    UNIX_CONFIG,
    Document,
    Edit,
    Envoy,
    ext_authz,
    running_envoy,
)
from deploy.demo.programs import ProgramError
from deploy.demo.proxies import Proxy
from deploy.demo.sidecar import FINANCE, ROUTES, Owner, ReservedPort, Sidecar, write_registry
from deploy.demo.upstream import running_upstream
from tests.waiting import PATIENCE_S

AMPLE_BURST = 1_000_000
LIMITED_RPM = 1
LIMITED_BURST = 3
LIMITED_OWNERS = 40


class Owners:
    """The owners of one registry: who they are is in their names."""

    def __init__(self) -> None:
        """Make fresh keys for everybody."""
        ample: dict[str, Any] = {"rate_limit_rpm": 10_000, "burst": AMPLE_BURST}
        read = ["inventory:read", "orders:read"]
        self.reader = Owner("reader", "Café Reader, 100 %", scopes=read, **ample)
        self.financier = Owner("financier", "Financier", scopes=["finance:read", "finance:write"], **ample)
        self.suspended = Owner("suspended", "Suspended", scopes=read, status="suspended", **ample)
        self.foreigner = Owner(
            "foreigner", "Elsewhere", scopes=read, ip_allowlist=["198.51.100.0/24"], **ample
        )
        self.neighbor = Owner("neighbor", "Nearby", scopes=read, ip_allowlist=["127.0.0.0/8"], **ample)
        self.shadowed = Owner(
            "shadowed", "Elsewhere, in shadow", scopes=read, ip_allowlist=["198.51.100.0/24"],
            shadow=["allowlist"], **ample,
        )  # fmt: skip
        self.expired = Owner("expired", "Expired", scopes=read, expires_at="2020-01-01T00:00:00Z", **ample)
        self.stranger = Owner("stranger", "Not in the registry")
        self._limited = [
            Owner(f"limited-{n}", "Limited", scopes=read, rate_limit_rpm=LIMITED_RPM, burst=LIMITED_BURST)
            for n in range(LIMITED_OWNERS)
        ]
        self._unused = list(self._limited)

    @property
    def registered(self) -> list[Owner]:
        """Everybody in the registry: all but the stranger."""
        known = (self.reader, self.financier, self.suspended, self.foreigner, self.neighbor, self.shadowed,
                 self.expired)  # fmt: skip
        return [*known, *self._limited]

    def limited(self) -> Owner:
        """An owner with `LIMITED_RPM` and `LIMITED_BURST` whose bucket nobody has touched."""
        return self._unused.pop()


def wait_long(document: Document, wait_s: float = PATIENCE_S) -> None:
    """Have Envoy wait for the sidecar while the machine is busy: a late answer is not a lost request."""
    ext_authz(document)["grpc_service"]["timeout"] = f"{wait_s:g}s"


@dataclass(frozen=True)
class StackKind:
    """
    One way to put the parts together; `proxy` is 'envoy' or one of `proxies.KINDS`.

    The proxy waits `wait_s` for the sidecar, see `wait_long`.
    """

    proxy: str = "envoy"
    unix: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    edit: Edit | None = None
    wait_s: float = PATIENCE_S

    def edited(self, document: Document) -> None:
        """Change Envoy's configuration *document* to this kind's."""
        wait_long(document, self.wait_s)
        if self.edit is not None:
            self.edit(document)


class Stack:
    """Everything of one kind, running; `close` stops it all."""

    def __init__(self, kind: StackKind) -> None:
        """Start the API, the sidecar and the proxy, in this order, and wait for each."""
        self._parts = ExitStack()
        self.kind = kind
        # A short path: that of a Unix socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="sidecar-e2e-"))
        self._parts.callback(shutil.rmtree, self.folder)
        try:
            self.people = Owners()
            self.registry = self.folder / "registry.yaml"
            write_registry(self.registry, self.people.registered)
            self.app_port = self._parts.enter_context(running_upstream())
            self.address = self._address("grpc")
            self.http_address = "" if kind.proxy == "envoy" else self._address("http")
            self.sidecar = self.start_sidecar()
            if kind.proxy == "envoy":
                self.envoy = self.start_envoy()
            else:
                self.proxy = self._start_proxy()
        except BaseException:
            self.close()
            raise

    @property
    def port(self) -> int:
        """Where the proxy listens; an Envoy that is started again has another port."""
        return self.envoy.port if self.kind.proxy == "envoy" else self.proxy.port

    def _address(self, kind: str) -> str:
        if self.kind.unix:
            return f"unix:{self.folder}/{kind}.sock"
        port = ReservedPort()
        self._parts.callback(port.close)
        return f"127.0.0.1:{port.number}"

    def start_sidecar(self, name: str = "sidecar") -> Sidecar:
        """Start a sidecar of this stack's kind, at its address; one that runs already needs another name."""
        takes_over = name != "sidecar"
        settings = dict(self.kind.settings)
        if self.http_address:
            settings = {"client_ip": "peer", "routes": [*ROUTES, FINANCE], **settings}
        sidecar = Sidecar(
            self.folder, self.address, self.registry, name, takes_over, self.http_address, **settings
        )
        self._parts.callback(sidecar.stop)
        return sidecar

    def start_envoy(self) -> Envoy:
        """Start an Envoy with this stack's configuration."""
        config = UNIX_CONFIG if self.kind.unix else TCP_CONFIG
        envoy = running_envoy(config, self.app_port, self.address, self.folder, self.kind.edited)
        self._parts.callback(envoy.stop)
        return envoy

    def _start_proxy(self) -> Proxy:
        is_nginx_of_root = self.kind.proxy.startswith("nginx") and os.geteuid() == 0
        user = "user root;\n" if is_nginx_of_root else ""  # who may connect to the sidecar's Unix socket

        def edit(text: str) -> str:
            return user + text.replace("500ms", f"{self.kind.wait_s:g}s")

        proxy = Proxy(self.kind.proxy, self.app_port, self.http_address, self.folder, edit)
        self._parts.callback(proxy.stop)
        return proxy

    def close(self) -> None:
        """Stop everything, in reverse order."""
        self._parts.close()

    def get(self, path: str, owner: Owner | None = None, headers: Iterable[Header] = ()) -> Answer:
        """GET *path* through the proxy with *owner*'s key and *headers* after it."""
        return self.send("GET", path, owner, headers)

    def send(
        self,
        method: str,
        path: str,
        owner: Owner | None = None,
        headers: Iterable[Header] = (),
        body: bytes | None = None,
    ) -> Answer:
        """Send a request through the proxy with *owner*'s key and *headers* after it."""
        key = [] if owner is None else owner.headers
        return send(self.port, method, path, [*key, *headers], body)


class Stacks:
    """The stacks that tests share, each started when it is first asked for."""

    def __init__(self, kinds: dict[str, StackKind]) -> None:
        """Know *kinds* by name."""
        self._kinds = kinds
        self._running: dict[str, Stack] = {}
        self._failed: dict[str, ProgramError] = {}

    def get(self, name: str) -> Stack:
        """
        The shared stack of this kind.

        Raises:
            ProgramError: it did not start; it is not tried a second time.
        """
        if name in self._failed:
            raise self._failed[name]
        if name not in self._running:
            try:
                self._running[name] = Stack(self._kinds[name])
            except ProgramError as error:
                self._failed[name] = error
                raise
        return self._running[name]

    def close(self) -> None:
        """Stop all of them."""
        for stack in self._running.values():
            stack.close()


def upstream_headers(answer: Answer) -> dict[str, list[str]]:
    """What reached the API, by lower-case name: all values of each header."""
    headers: dict[str, list[str]] = {}
    for name, value in answer.json()["headers"]:
        headers.setdefault(name, []).append(value)
    return headers

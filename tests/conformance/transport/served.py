"""Servers under test: both transports behind one way to start, reach and stop them."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.rpc.calls import Method
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.reference import ReferenceGrpcServer
from sidecar.transports.server import Endpoint, ListeningServer, TlsFiles, TransportLimits
from tests.waiting import PATIENCE_S, eventually

from .background import BackgroundLoop
from .probe import ProbeService

TRANSPORTS: dict[str, Callable[..., ListeningServer]] = {
    "fast": FastGrpcServer,
    "reference": ReferenceGrpcServer,
}


@dataclass
class Served:
    """A running server, where it listens, its probe service and its counts."""

    transport: str
    server: ListeningServer
    endpoints: tuple[Endpoint, ...]
    probe: ProbeService
    metrics: Metrics
    loop: BackgroundLoop
    is_drained: bool = False

    @property
    def tcp(self) -> Endpoint:
        """The first TCP endpoint."""
        return next(endpoint for endpoint in self.endpoints if not endpoint.path)

    @property
    def unix(self) -> Endpoint:
        """The first Unix socket."""
        return next(endpoint for endpoint in self.endpoints if endpoint.path)

    def drain(self, timeout_s: float = 5.0) -> bool:
        """Drain and wait; True = nothing was cut off."""
        self.is_drained = True
        return self.loop.run(self.server.drain(timeout_s), timeout_s + PATIENCE_S)

    def calls(self, code: int) -> int:
        """How many calls have ended with *code*."""
        return self.metrics.value("sidecar_calls_total", str(code))

    def reloads(self, result: str) -> int:
        """How many reloads of TLS files were 'ok' or 'failed'."""
        return self.metrics.value("sidecar_tls_reloads_total", result)

    def unreadable(self, kind: str) -> int:
        """Files of *kind* that cannot be read now."""
        return self.metrics.value("sidecar_files_unreadable", kind)

    def running(self) -> int:
        """How many handlers run."""
        return self.metrics.value("sidecar_calls_running")

    def close(self) -> None:
        """End held calls and drain; every slot must come back."""
        self.probe.held.end_all()
        if not self.is_drained:
            self.drain()
        self.probe.held.end_all()
        eventually(lambda: self.running() == 0, what="every handler's slot came back")


class Servers:
    """Starts servers of one transport and stops them all in the end."""

    def __init__(self, transport: str, loop: BackgroundLoop, folder: Path) -> None:
        """Unix sockets are made in *folder*."""
        self.transport = transport
        self.loop = loop
        self.folder = folder
        self._started: list[Served] = []

    def start(
        self,
        limits: TransportLimits | None = None,
        endpoints: Sequence[Endpoint] | None = None,
        methods: Sequence[Method] = (),
        tls: TlsFiles | None = None,
    ) -> Served:
        """Start one server; by default on a free TCP port and on a Unix socket."""
        where = endpoints or (
            Endpoint("127.0.0.1", 0, tls=tls),
            Endpoint(path=str(self.folder / secrets.token_hex(4)), tls=tls),
        )
        probe, metrics = ProbeService(self.loop), Metrics(TABLE)
        server = self.loop.call(
            TRANSPORTS[self.transport],
            (*probe.methods(), *methods),
            where,
            limits or TransportLimits(),
            metrics,
        )
        bound = self.loop.run(server.start())
        served = Served(self.transport, server, bound, probe, metrics, self.loop)
        self._started.append(served)
        return served

    def close(self) -> None:
        """Stop all."""
        for served in self._started:
            served.close()


def address(endpoint: Endpoint) -> str:
    """The endpoint as a grpcio target."""
    if endpoint.path.startswith("@"):
        return f"unix-abstract:{endpoint.path[1:]}"
    return f"unix:{endpoint.path}" if endpoint.path else str(endpoint)


@contextlib.contextmanager
def channel(endpoint: Endpoint, *options: tuple[str, object]) -> Iterator[grpc.Channel]:
    """A plain grpcio channel with connections of its own."""
    settings = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), *options)
    with grpc.insecure_channel(address(endpoint), options=settings) as opened:
        yield opened


def quiet_grpc() -> None:
    """grpc logs each exception of a handler with its text; the suite provokes many."""
    logging.getLogger("grpc").setLevel(logging.CRITICAL)

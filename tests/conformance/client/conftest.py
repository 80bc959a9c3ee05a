"""A sidecar's gRPC server on each transport, and the API keys that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from sidecar.domain.answers import AnswerStyle
from sidecar.services.decision_service import DecisionService
from sidecar.services.whoami import CallerDescriber, DescribeCallerMethod
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.reference import ReferenceGrpcServer
from sidecar.transports.server import Endpoint, ListeningServer, TransportLimits
from tests.building import make_decider, make_integration, make_key, make_metrics
from tests.conformance.transport.background import BackgroundLoop
from tests.waiting import PATIENCE_S

TRANSPORTS: dict[str, Callable[..., ListeningServer]] = {
    "fast": FastGrpcServer,
    "reference": ReferenceGrpcServer,
}


class RunningSidecar:
    """
    A gRPC server, its address, and the API keys of its two integrations.

    `acme` may read orders, 60 a minute; `office`, one a minute, and only from 192.0.2.0/24.
    """

    def __init__(self, transport: str, loop: BackgroundLoop) -> None:
        """Serve on a free port."""
        self.acme, self.office = make_key(), make_key()
        self.metrics = make_metrics()
        self._loop = loop
        self._transport = TRANSPORTS[transport]
        decider = make_decider(
            make_integration(self.acme, name="Café"),
            make_integration(self.office, id="office", rate_limit_rpm=1, burst=1, allowlist=["192.0.2.0/24"]),
        )
        style = AnswerStyle()
        describe = DescribeCallerMethod(CallerDescriber(decider), decider, style).method()
        self._methods = (*DecisionService(decider, style).methods(), describe)
        self.server: ListeningServer | None = None
        self.endpoint = self.start(Endpoint("127.0.0.1", 0))

    @property
    def target(self) -> str:
        """Where a client finds it."""
        return str(self.endpoint)

    def start(self, endpoint: Endpoint) -> Endpoint:
        """Serve at *endpoint*; the real one."""
        self.server = self._transport(self._methods, (endpoint,), TransportLimits(), self.metrics)
        (bound,) = self._loop.run(self.server.start())
        return bound

    def stop(self) -> None:
        """Stop serving, if it serves."""
        if self.server is not None:
            self._loop.run(self.server.drain(PATIENCE_S / 4))
            self.server = None

    def restart(self, **changes: object) -> None:
        """Serve at the same place again, or at another one by *changes* of the endpoint."""
        self.stop()
        self.endpoint = self.start(replace(self.endpoint, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def loop() -> Iterator[BackgroundLoop]:
    """The event loop that the servers run on."""
    background = BackgroundLoop()
    yield background
    background.close()


@pytest.fixture(params=sorted(TRANSPORTS))
def sidecar(request: pytest.FixtureRequest, loop: BackgroundLoop) -> Iterator[RunningSidecar]:
    """A server of each transport, with full buckets."""
    running = RunningSidecar(request.param, loop)
    yield running
    running.stop()

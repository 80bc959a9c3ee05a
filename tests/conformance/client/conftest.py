"""A sidecar's gRPC server on each transport, and the API key that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey
from sidecar.services.decision_service import DecisionService
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


@dataclass
class RunningSidecar:
    """
    A gRPC server, its address, and the API keys of its two integrations.

    `acme` may read orders, 60 a minute; `office`, one a minute, and only from 192.0.2.0/24.
    """

    target: str
    acme: NewApiKey
    office: NewApiKey
    stop: Callable[[], None]


@pytest.fixture(scope="session")
def loop() -> Iterator[BackgroundLoop]:
    """The event loop that the servers run on."""
    background = BackgroundLoop()
    yield background
    background.close()


@pytest.fixture(params=sorted(TRANSPORTS))
def sidecar(request: pytest.FixtureRequest, loop: BackgroundLoop) -> Iterator[RunningSidecar]:
    """A server of each transport, with full buckets."""
    acme, office = make_key(), make_key()
    decider = make_decider(
        make_integration(acme, name="Café"),
        make_integration(office, id="office", rate_limit_rpm=1, burst=1, allowlist=["192.0.2.0/24"]),
    )
    server = TRANSPORTS[request.param](
        DecisionService(decider, AnswerStyle()).methods(),
        (Endpoint("127.0.0.1", 0),),
        TransportLimits(),
        make_metrics(),
    )
    (endpoint,) = loop.run(server.start())
    is_running = True

    def stop() -> None:
        nonlocal is_running
        if is_running:
            is_running = False
            loop.run(server.drain(PATIENCE_S / 4))

    yield RunningSidecar(str(endpoint), acme, office, stop)
    stop()

"""grpc.health.v1 on both transports, asked and watched by the standard client."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.services.health import HealthService
from tests.waiting import PATIENCE_S, eventually

from .served import Served, Servers, channel

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

WATCHERS_MAX = 3


@pytest.fixture
def health() -> HealthService:
    """A health service that knows the whole process and one service."""
    return HealthService(("", "sidecar.v1.DecisionService"), watchers_max=WATCHERS_MAX)


@pytest.fixture
def served(servers: Servers, health: HealthService) -> Served:
    """A server with it."""
    return servers.start(methods=health.methods())


@pytest.fixture
def stub(served: Served) -> Iterator[health_pb2_grpc.HealthStub]:
    """The standard client."""
    with channel(served.tcp) as client:
        yield health_pb2_grpc.HealthStub(client)


def request(service: str = "") -> health_pb2.HealthCheckRequest:
    """What to ask."""
    return health_pb2.HealthCheckRequest(service=service)


def test_check__answers(served: Served, health: HealthService, stub: health_pb2_grpc.HealthStub) -> None:
    """Check tells each service's own status, before and after it changes."""
    assert stub.Check(request(), timeout=PATIENCE_S).status == NOT_SERVING
    served.loop.call(health.set_serving, "", True)
    assert stub.Check(request(), timeout=PATIENCE_S).status == SERVING
    assert stub.Check(request("sidecar.v1.DecisionService"), timeout=PATIENCE_S).status == NOT_SERVING


def test_check__unknown_service(stub: health_pb2_grpc.HealthStub) -> None:
    """Check of a service that is not here is NOT_FOUND."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(request("nobody"), timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_watch__changes_as_they_come(
    served: Served, health: HealthService, stub: health_pb2_grpc.HealthStub
) -> None:
    """Watch tells the status at once and then each change, and nothing twice."""
    answers = stub.Watch(request(), timeout=PATIENCE_S)
    seen = [next(answers).status]
    for is_serving in (True, True, False, False, True):
        served.loop.call(health.set_serving, "", is_serving)
    seen += [next(answers).status for _ in range(3)]
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]
    answers.cancel()


def test_watch__unknown_service_stays_open(
    served: Served, health: HealthService, stub: health_pb2_grpc.HealthStub
) -> None:
    """Watch of an unknown service says so, stays open, and tells when the service comes."""
    answers = stub.Watch(request("later"), timeout=PATIENCE_S)
    assert next(answers).status == SERVICE_UNKNOWN
    served.loop.call(health.set_serving, "later", True)
    assert next(answers).status == SERVING
    answers.cancel()


def test_watch__places_come_back(
    served: Served, health: HealthService, stub: health_pb2_grpc.HealthStub
) -> None:
    """Watchers are bounded; those that leave, by cancelling or by losing the connection, make room."""
    watching = [stub.Watch(request(), timeout=PATIENCE_S) for _ in range(WATCHERS_MAX - 1)]
    assert {next(answers).status for answers in watching} == {NOT_SERVING}
    with channel(served.unix) as lost:
        last = health_pb2_grpc.HealthStub(lost).Watch(request(), timeout=PATIENCE_S)
        assert next(last).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(request(), timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    watching[0].cancel()
    eventually(lambda: health.watchers == WATCHERS_MAX - 2, what="two watchers have left")
    assert served.running() == WATCHERS_MAX - 2
    again = stub.Watch(request(), timeout=PATIENCE_S)
    assert next(again).status == NOT_SERVING
    for answers in (*watching, again):
        answers.cancel()

"""On SIGTERM a sidecar says so everywhere before it goes, and goes within its bound."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.conftest import GRPCIO
from tests.e2e.stack import Stack, StackKind

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
TIMEOUT_S = 60.0


@pytest.fixture(
    params=[StackKind(), StackKind(unix=True), StackKind(settings=GRPCIO)],
    ids=["fast-tcp", "fast-unix", "grpcio-tcp"],
)
def own_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack whose sidecar one test may stop."""
    stack = Stack(request.param)
    yield stack
    stack.close()


def health_stub(channel: grpc.Channel) -> health_pb2_grpc.HealthStub:
    """A client of the health service."""
    return health_pb2_grpc.HealthStub(channel)


def test_drain__health_flips_before_the_process_ends(own_stack: Stack) -> None:
    """A watcher that saw SERVING is told NOT_SERVING, then its stream ends, then the process, with code 0."""
    with grpc.insecure_channel(own_stack.address) as channel:
        stub = health_stub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert next(watch).status == SERVING
        own_stack.sidecar.signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        with pytest.raises((StopIteration, grpc.RpcError)):
            next(watch)
    assert own_stack.sidecar.wait() == 0


def test_drain__health_answers_both_kinds_of_caller(own_stack: Stack) -> None:
    """Envoy's own health check and an asking client agree with /readyz."""
    with grpc.insecure_channel(own_stack.address) as channel:
        answer = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert (answer.status, own_stack.sidecar.admin("/readyz").status) == (SERVING, 200)
    assert own_stack.sidecar.admin("/healthz").status == 200
    assert own_stack.envoy.stat("cluster.sidecar.membership_healthy") == 1

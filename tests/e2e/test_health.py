"""Envoy's health checks, clients of the health service and /readyz agree."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.stack import Stack
from tests.waiting import PATIENCE_S


def test_health__answers_both_kinds_of_caller(any_stack: Stack) -> None:
    """Envoy's own health check and an asking client agree with /readyz."""
    with grpc.insecure_channel(any_stack.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert (answer.status, any_stack.sidecar.admin("/readyz").status) == (serving, 200)
    assert any_stack.sidecar.admin("/healthz").status == 200
    assert any_stack.envoy.stat("cluster.sidecar.membership_healthy") == 1

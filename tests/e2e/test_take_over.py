"""A new process takes over from a running one, and no request of anybody fails."""

from __future__ import annotations

import signal

import pytest

from deploy.demo.sidecar import Sidecar
from tests.e2e.conftest import GRPCIO
from tests.e2e.stack import Stack, StackKind
from tests.e2e.steady_load import SteadyLoad

ALLOWED = 'sidecar_decisions_total{reason="ok",verdict="ALLOW"}'
ROUNDS = 2
REQUESTS = 100
GRPCIO_FAULTS_MAX = 20


def take_over_again_and_again(stack: Stack, load: SteadyLoad, rounds: int) -> Sidecar:
    """Start a new sidecar, then stop the one before, *rounds* times; return the last."""
    running = stack.sidecar
    load.await_more(REQUESTS)
    for number in range(rounds):
        successor = stack.start_sidecar(f"successor-{number}")
        load.await_more(REQUESTS)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        load.await_more(REQUESTS)
        running = successor
    return running


@pytest.mark.parametrize(
    ("proxy", "unix"),
    [
        ("envoy", False),
        ("envoy", True),
        ("nginx", True),
        ("nginx-accel", False),
        ("caddy", False),
        ("haproxy", True),
    ],
)
def test_take_over__loses_no_request(proxy: str, unix: bool) -> None:
    """
    Start the new one, then stop the old one, again and again under load through a proxy: 0 failures.

    A process that ends leaves the socket that its successor serves by then.
    """
    stack = Stack(StackKind(proxy=proxy, unix=unix))
    try:
        with SteadyLoad(stack.port, stack.people.reader) as load:
            last = take_over_again_and_again(stack, load, ROUNDS if proxy == "envoy" else 1)
        assert load.faults == []
        assert last.metric(ALLOWED) >= REQUESTS
    finally:
        stack.close()


def test_take_over__on_grpcio_fails_closed_for_a_moment() -> None:
    """
    The reference transport loses the few calls that meet the start of its drain, and lets none pass.

    grpc-core refuses new calls from the moment at which it begins to send GOAWAY; the client cannot
    know by then. That is one reason why `fast` is the default.
    """
    stack = Stack(StackKind(settings=GRPCIO))
    try:
        with SteadyLoad(stack.envoy.port, stack.people.reader, faults_max=GRPCIO_FAULTS_MAX) as load:
            last = take_over_again_and_again(stack, load, rounds=1)
        assert set(load.faults) <= {"503 b''"}
        assert not load.is_spoilt
        assert last.metric(ALLOWED) >= REQUESTS
    finally:
        stack.close()

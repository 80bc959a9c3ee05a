"""When a part is gone, requests get their defined answer; when it is back, all is well by itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from deploy.demo.envoy import Document, ext_authz
from tests.e2e.stack import Stack, StackKind
from tests.waiting import eventually

OPEN_CONNECTIONS = "sidecar_connections_open"


@pytest.fixture(params=[StackKind(), StackKind(unix=True)], ids=["tcp", "unix"])
def own_stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack that one test may break."""
    stack = Stack(request.param)
    yield stack
    stack.close()


def status(stack: Stack) -> int:
    """The status of a request that nothing is wrong with."""
    return stack.get("/v1/inventory/42", stack.people.reader).status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_failures__no_sidecar_means_503_until_it_is_back(own_stack: Stack, number: signal.Signals) -> None:
    """Envoy fails closed at once, stopped or killed, and opens by itself when a sidecar is back."""
    assert status(own_stack) == 200
    own_stack.sidecar.signal(number)
    own_stack.sidecar.wait()
    assert [status(own_stack) for _ in range(5)] == [503] * 5
    assert own_stack.envoy.stat("http.ingress.ext_authz.error") == 5
    assert own_stack.envoy.stat("http.ingress.ext_authz.failure_mode_allowed") == 0
    own_stack.start_sidecar("successor")
    eventually(lambda: status(own_stack) == 200, what="Envoy finds the new sidecar")


def test_failures__a_stopped_process_is_answered_for_within_the_timeout(own_stack: Stack) -> None:
    """A sidecar that accepts and says nothing costs a request Envoy's timeout, a 503, and no more."""
    own_stack.sidecar.signal(signal.SIGSTOP)
    try:
        assert status(own_stack) == 503
    finally:
        own_stack.sidecar.signal(signal.SIGCONT)
    eventually(lambda: status(own_stack) == 200, what="the sidecar answers again")


def test_failures__envoy_may_restart(own_stack: Stack) -> None:
    """A new Envoy is served at once, and nothing of the old one's connections is left over."""
    assert status(own_stack) == 200
    before = own_stack.sidecar.metric(OPEN_CONNECTIONS)
    own_stack.envoy.signal(signal.SIGKILL)
    own_stack.envoy.wait()
    eventually(lambda: own_stack.sidecar.metric(OPEN_CONNECTIONS) == 0, what="the old connections are closed")
    own_stack.envoy = own_stack.start_envoy()
    assert status(own_stack) == 200
    assert 0 < own_stack.sidecar.metric(OPEN_CONNECTIONS) <= before + 1
    assert own_stack.sidecar.metric("sidecar_calls_running") == 0


def test_failures__a_bucket_outlives_a_restart_of_envoy(own_stack: Stack) -> None:
    """What was used stays used: the buckets are the sidecar's."""
    owner = own_stack.people.limited()
    first = own_stack.get("/v1/inventory/42", owner)
    own_stack.envoy.stop()
    own_stack.envoy = own_stack.start_envoy()
    second = own_stack.get("/v1/inventory/42", owner)
    assert [answer.one("x-ratelimit-remaining") for answer in (first, second)] == ["2", "1"]


def _fail_open(document: Document) -> None:
    ext_authz(document)["failure_mode_allow"] = True


def test_failures__denials_stand_where_envoy_fails_open() -> None:
    """`failure_mode_allow` lets requests pass while no sidecar is there; denials are no failures to it."""
    stack = Stack(StackKind(unix=True, edit=_fail_open))
    try:
        owner = stack.people.limited()
        statuses = [stack.get("/v1/inventory/42", owner).status for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert stack.get("/v1/inventory/42").status == 403
        stack.sidecar.stop()
        assert stack.get("/v1/inventory/42").status == 200
    finally:
        stack.close()

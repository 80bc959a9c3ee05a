"""When a part fails, requests get their defined answer; when it is back, all is well by itself."""

from __future__ import annotations

import signal

import pytest

from deploy.demo.envoy import Document, ext_authz
from tests.e2e.stack import Stack, StackKind
from tests.waiting import eventually

WAIT_S = 3.0
"""How long Envoy waits for the sidecar, which answers within it on a busy machine."""
OPEN_CONNECTIONS = "sidecar_connections_open"


def status(stack: Stack) -> int:
    """The status of a request that nothing is wrong with."""
    return stack.get("/v1/inventory/42", stack.people.reader).status


@pytest.mark.parametrize(
    ("kind", "number"),
    [(StackKind(wait_s=WAIT_S), signal.SIGKILL), (StackKind(unix=True, wait_s=WAIT_S), signal.SIGTERM)],
    ids=["tcp-killed", "unix-stopped"],
)
def test_failures__each_has_its_answer_and_is_over_by_itself(kind: StackKind, number: signal.Signals) -> None:
    """
    A sidecar that says nothing costs a request Envoy's timeout; Envoy may restart; then the sidecar ends.

    Envoy fails closed at once, stopped or killed, and opens by itself when a sidecar is back.
    """
    stack = Stack(kind)
    try:
        stack.sidecar.signal(signal.SIGSTOP)
        try:
            assert status(stack) == 503
        finally:
            stack.sidecar.signal(signal.SIGCONT)
        eventually(lambda: status(stack) == 200, what="the sidecar answers again")
        _restart_envoy(stack)
        before = stack.envoy.stat("http.ingress.ext_authz.error")
        stack.sidecar.signal(number)
        stack.sidecar.wait()
        assert [status(stack) for _ in range(5)] == [503] * 5
        assert stack.envoy.stat("http.ingress.ext_authz.error") == before + 5
        assert stack.envoy.stat("http.ingress.ext_authz.failure_mode_allowed") == 0
        stack.start_sidecar("successor")
        eventually(lambda: status(stack) == 200, what="Envoy finds the new sidecar")
    finally:
        stack.close()


def _restart_envoy(stack: Stack) -> None:
    """A new Envoy is served at once, nothing of the old one's connections is left, and buckets stay used."""
    owner = stack.people.limited()
    first = stack.get("/v1/inventory/42", owner)
    before = stack.sidecar.metric(OPEN_CONNECTIONS)
    stack.envoy.signal(signal.SIGKILL)
    stack.envoy.wait()
    eventually(lambda: stack.sidecar.metric(OPEN_CONNECTIONS) == 0, what="the old connections are closed")
    stack.envoy = stack.start_envoy()
    second = stack.get("/v1/inventory/42", owner)
    assert [answer.one("x-ratelimit-remaining") for answer in (first, second)] == ["2", "1"]
    assert 0 < stack.sidecar.metric(OPEN_CONNECTIONS) <= before + 1
    assert stack.sidecar.metric("sidecar_calls_running") == 0


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

"""What clients see behind nginx, Caddy and HAProxy while the sidecar is down, stalled or back again."""

from __future__ import annotations

import signal

import pytest

from deploy.demo.calling import Answer
from tests.e2e.stack import Stack, StackKind
from tests.waiting import eventually

PATH = "/v1/inventory/42"
ACCEPTED = "sidecar_http_connections_open"
WAIT_S = 3.0
"""How long the proxy waits for the sidecar, which answers within it on a busy machine."""
MIXED = 10
CONNECTIONS_MAX = 6
"""Each worker of nginx, and each thread of HAProxy, keeps separate connections."""


def refused_closed(answer: Answer) -> bool:
    """Whether *answer* is the 503 of the proxy's configuration."""
    if answer.status != 503:
        return False
    assert answer.one("content-type") == "application/problem+json"
    assert answer.json()["status"] == 503
    assert answer.one("retry-after") == "1"
    return True


@pytest.mark.parametrize(
    ("proxy", "unix"), [("nginx", False), ("nginx-accel", True), ("caddy", True), ("haproxy", False)]
)
def test_failures__connections_are_kept_and_every_failure_is_closed(proxy: str, unix: bool) -> None:
    """
    Allowed and denied requests use the same few connections, whatever befalls the sidecar afterwards.

    One that answers nothing costs each request the proxy's time-out. Without it every request is a 503, and
    the API is not asked; then all is as before. Each configuration is the same over TCP and Unix sockets.
    """
    stack = Stack(StackKind(proxy=proxy, unix=unix, wait_s=WAIT_S))
    try:
        _keeps_connections(stack)
        _is_closed_while_stalled(stack)
        assert stack.sidecar.stop() == 0
        for _ in range(3):
            assert refused_closed(stack.get(PATH, stack.people.reader))
        stack.start_sidecar("again")
        eventually(lambda: stack.get(PATH, stack.people.reader).status == 200, what="allowed again")
    finally:
        stack.close()


def _keeps_connections(stack: Stack) -> None:
    for _ in range(MIXED):
        stack.get(PATH, stack.people.reader)
        stack.get(PATH)
        stack.get("/v1/finance/invoices", stack.people.reader)
        stack.get(PATH, stack.people.suspended)
    # The admin connection that asks is one of them; none was closed.
    assert stack.sidecar.metric(ACCEPTED) <= CONNECTIONS_MAX
    page = stack.sidecar.admin("/metrics").body.decode()
    lines = [line for line in page.splitlines() if line.startswith("sidecar_http_connections_closed_total{")]
    assert lines
    closed = (float(line.rsplit(" ", 1)[1]) for line in lines if "served" not in line and "peer" not in line)
    assert sum(closed) == 0


def _is_closed_while_stalled(stack: Stack) -> None:
    stack.sidecar.signal(signal.SIGSTOP)
    try:
        assert refused_closed(stack.get(PATH, stack.people.reader))
    finally:
        stack.sidecar.signal(signal.SIGCONT)
    eventually(lambda: stack.get(PATH, stack.people.reader).status == 200, what="allowed again")

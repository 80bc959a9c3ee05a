"""What clients see behind nginx, Caddy and HAProxy while the sidecar is down, stalled or back again."""

from __future__ import annotations

import signal

import pytest

from deploy.demo.calling import Answer
from deploy.demo.proxies import KINDS
from tests.e2e.stack import Stack, StackKind
from tests.waiting import eventually

PATH = "/v1/inventory/42"
ALLOWED = 'sidecar_decisions_total{reason="ok",verdict="ALLOW"}'
ACCEPTED = "sidecar_http_connections_open"
MIXED = 10
CONNECTIONS_MAX = 6
"""Each worker of nginx, and each thread of HAProxy, keeps connections of its own."""


def refused_closed(answer: Answer) -> bool:
    """Whether *answer* is the 503 of the proxy's configuration."""
    if answer.status != 503:
        return False
    assert answer.one("content-type") == "application/problem+json"
    assert answer.json()["status"] == 503
    assert answer.one("retry-after") == "1"
    return True


@pytest.mark.parametrize("proxy", KINDS)
def test_sidecar_down__closed_until_it_is_back(proxy: str) -> None:
    """Without the sidecar every request is a 503, and the API is not asked; then all is as before."""
    stack = Stack(StackKind(proxy=proxy))
    try:
        reader = stack.people.reader
        assert stack.get(PATH, reader).status == 200
        assert stack.sidecar.stop() == 0
        for _ in range(3):
            assert refused_closed(stack.get(PATH, reader))
        stack.start_sidecar("again")
        eventually(lambda: stack.get(PATH, reader).status == 200, what="allowed again")
    finally:
        stack.close()


@pytest.mark.parametrize("proxy", KINDS)
def test_sidecar_stalled__closed_in_time(proxy: str) -> None:
    """A sidecar that takes connections and answers nothing costs each request the proxy's time-out."""
    stack = Stack(StackKind(proxy=proxy))
    try:
        reader = stack.people.reader
        assert stack.get(PATH, reader).status == 200
        stack.sidecar.signal(signal.SIGSTOP)
        try:
            assert refused_closed(stack.get(PATH, reader))
        finally:
            stack.sidecar.signal(signal.SIGCONT)
        eventually(lambda: stack.get(PATH, reader).status == 200, what="allowed again")
    finally:
        stack.close()


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("proxy", KINDS)
def test_connections__kept_between_proxy_and_sidecar(proxy: str, unix: bool) -> None:
    """Allowed and denied requests use the same few connections."""
    stack = Stack(StackKind(proxy=proxy, unix=unix))
    try:
        for _ in range(MIXED):
            stack.get(PATH, stack.people.reader)
            stack.get(PATH)
            stack.get("/v1/finance/invoices", stack.people.reader)
            stack.get(PATH, stack.people.suspended)
        # The admin connection that asks is one of them; none was closed.
        assert stack.sidecar.metric(ACCEPTED) <= CONNECTIONS_MAX
        closed = stack.sidecar.admin("/metrics").body.decode()
        lines = [
            line for line in closed.splitlines() if line.startswith("sidecar_http_connections_closed_total{")
        ]
        assert lines
        served = sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if "served" not in line and "peer" not in line
        )
        assert served == 0
    finally:
        stack.close()

"""Stacks of each proxy, over TCP and over Unix sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.demo.proxies import KINDS
from tests.e2e.stack import Stack, StackKind, Stacks

SETTINGS = (("unauthenticated_status", 401),)
PROXY_KINDS = {
    f"{proxy}-{'unix' if unix else 'tcp'}": StackKind(proxy=proxy, unix=unix, settings=SETTINGS)
    for proxy in KINDS
    for unix in (False, True)
}


@pytest.fixture(scope="session")
def proxy_stacks() -> Iterator[Stacks]:
    """All of them, each started when it is first asked for."""
    stacks = Stacks(PROXY_KINDS)
    yield stacks
    stacks.close()


@pytest.fixture(params=PROXY_KINDS)
def stack(request: pytest.FixtureRequest, proxy_stacks: Stacks) -> Stack:
    """A shared stack of each proxy and socket."""
    return proxy_stacks.get(request.param)

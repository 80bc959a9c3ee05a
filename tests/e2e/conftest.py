"""Stacks that tests share: starting one takes about a second, asking it a few milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.demo.envoy import Document, ext_authz
from tests.e2e.stack import Stack, StackKind, Stacks

GRPCIO = (("transport", "grpcio"),)
WIDE = (("limits", {"message_bytes_max": 131_072}),)
"""Room for a path twice, as a field and as a header: so Envoy sends it without `allowed_headers`."""

MAIN_KINDS = ("fast-tcp", "fast-unix")
ALL_KINDS = (*MAIN_KINDS, "grpcio-tcp", "grpcio-unix", "raw-headers")


def _raw_headers(document: Document) -> None:
    """Envoy sends headers one by one instead of joined, and all of them."""
    ext_authz(document)["encode_raw_headers"] = True
    del ext_authz(document)["allowed_headers"]


KINDS = {
    "fast-tcp": StackKind(),
    "fast-unix": StackKind(unix=True),
    "grpcio-tcp": StackKind(settings=GRPCIO),
    "grpcio-unix": StackKind(unix=True, settings=GRPCIO),
    "raw-headers": StackKind(unix=True, settings=WIDE, edit=_raw_headers),
    "status-401": StackKind(unix=True, settings=(("unauthenticated_status", 401), ("ietf_headers", True))),
}


@pytest.fixture(scope="session")
def stacks() -> Iterator[Stacks]:
    """All shared stacks, by name."""
    stacks = Stacks(KINDS)
    yield stacks
    stacks.close()


@pytest.fixture(params=MAIN_KINDS)
def stack(request: pytest.FixtureRequest, stacks: Stacks) -> Stack:
    """A shared stack on the fast transport: over TCP, then over a Unix socket."""
    return stacks.get(request.param)


@pytest.fixture(params=ALL_KINDS)
def any_stack(request: pytest.FixtureRequest, stacks: Stacks) -> Stack:
    """A shared stack of each kind: both transports, both sockets, and raw headers."""
    return stacks.get(request.param)


@pytest.fixture
def stack_401(stacks: Stacks) -> Stack:
    """A shared stack that answers 401 to unknown callers and sends the IETF's headers, too."""
    return stacks.get("status-401")

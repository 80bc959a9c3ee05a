"""`sidecar serve` on a store that a fleet shares: start without it, changes at once, and a file beside it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.lifecycle import commands as c
from tests.administration import ANN, BOB, CAT, ID
from tests.redis_servers import RedisServer, free_port, shared
from tests.registry_in_redis import RegistryHand, create_for
from tests.unit.process.running import Configured, Running, admin_get
from tests.waiting import eventually


def components(sidecar: Running) -> dict[str, Any]:
    """What /readyz says of each component."""
    reported: dict[str, Any] = json.loads(admin_get(sidecar.admin(), "/readyz")[1])["components"]
    return reported


def is_ready(sidecar: Running) -> bool:
    """Whether /readyz answers 200."""
    return admin_get(sidecar.admin(), "/readyz")[0] == 200


def fresh_url(server: RedisServer) -> str:
    """A separate registry in *server*."""
    return f"{server.url}?prefix=sidecar:{secrets.token_hex(4)}:"


@dataclass(frozen=True)
class AdministeredSidecar:
    """A ready sidecar at *target* whose registry is in a store, and the hand that changes what is there."""

    configured: Configured
    hand: RegistryHand
    target: str

    def reason(self) -> str:
        """Why the integration's next request is denied."""
        return self.configured.ask(self.target).reason


@contextmanager
def administered(folder: Path, server: RedisServer) -> Iterator[AdministeredSidecar]:
    """A sidecar with one integration, in a separate registry in *server*."""
    url = fresh_url(server)
    configured = Configured(folder, store=url, registry=None)
    hand = RegistryHand(url)
    hand.found()
    hand.apply(create_for(configured.key))
    sidecar = configured.serve()
    try:
        target = sidecar.event("serving")["grpc"][0]
        eventually(lambda: is_ready(sidecar), what="the sidecar is ready")
        assert configured.ask(target).is_allowed
        yield AdministeredSidecar(configured, hand, target)
    finally:
        sidecar.stop()


def test_start__without_the_store_and_ready_by_itself(tmp_path: Path) -> None:
    """Without its store a sidecar listens, answers 503 and is not ready; once it is there, all is well."""
    server = RedisServer(tmp_path / "redis", port=free_port())
    configured = Configured(tmp_path, store=server.url, registry=None)
    sidecar = configured.serve()
    try:
        target = sidecar.event("serving")["grpc"][0]
        assert not is_ready(sidecar)
        answer = configured.ask(target)
        assert (answer.status, answer.reason) == (503, "store_unavailable")
        server.start()
        hand = RegistryHand(server.url)
        hand.found()
        hand.apply(create_for(configured.key))
        eventually(lambda: is_ready(sidecar), what="the sidecar is ready")
        eventually(lambda: configured.ask(target).is_allowed, what="the integration is known")
    finally:
        sidecar.stop()
        server.stop()


def test_changes__are_in_force_with_the_next_request(tmp_path: Path) -> None:
    """What an administrator has done to an integration holds for the very next request."""
    with administered(tmp_path, shared().standalone) as deployment:
        hand = deployment.hand
        hand.apply(c.Suspend(integration_id=ID, reason="leak"), ANN)
        assert deployment.reason() == "integration_suspended"
        fresh = generate_api_key()
        issued = c.NewCredential(fresh.credential_id, fresh.digest)
        hand.apply(c.IssueCredential(integration_id=ID, credential=issued), ANN)
        hand.apply(c.Reactivate(integration_id=ID, reason="replaced"), BOB)
        assert deployment.reason() == "unknown_credential"
        deployment.configured.key = fresh
        assert deployment.configured.ask(deployment.target).is_allowed
        hand.apply(c.SetAllowlist(integration_id=ID, entries=("192.0.2.0/24",)), CAT)
        hand.apply(c.EnableAllowlist(integration_id=ID), CAT)
        assert deployment.reason() == "ip_not_allowed"


def test_file__is_the_registry_when_it_is_named(tmp_path: Path) -> None:
    """With a registry file the store holds buckets alone, and no generation there matters."""
    configured = Configured(tmp_path, store=fresh_url(shared().standalone))
    configured.write_registry(rate_limit_rpm=1, burst=2)
    first = configured.serve()
    try:
        target = first.event("serving")["grpc"][0]
        eventually(lambda: is_ready(first), what="the sidecar is ready")
        assert [configured.ask(target).is_allowed for _ in range(3)] == [True, True, False]
        assert set(components(first)) == {"grpc", "registry", "store"}
    finally:
        first.stop()


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_kinds__of_stores(tmp_path: Path, kind: str) -> None:
    """The same in a Cluster and behind Sentinels."""
    with administered(tmp_path, getattr(shared(), kind)) as deployment:
        deployment.hand.apply(c.Suspend(integration_id=ID, reason="leak"), ANN)
        assert deployment.reason() == "integration_suspended"

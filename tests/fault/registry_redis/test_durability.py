"""Whether replicas have a change is reported if there are replicas, else not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.domain.lifecycle.commands import Suspend
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.process.first_administrator import create_first_administrator
from sidecar.services.admin.apply.engine import ApplyRequest
from sidecar.services.admin.apply.run import apply_declared
from sidecar.services.admin.views import durability_view
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.file.registry_file import load_declarations
from sidecar.stores.registry.redis.nodes import Replication
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import ANN, ID, LIFECYCLE, create, request
from tests.redis_servers import LOOPBACK, RedisServer
from tests.registry_in_redis import CONTEXT, add_people
from tests.waiting import eventually, run

ALONE = {"is_durable": False, "lacks_replicas": False}
LACKING = {"is_durable": False, "lacks_replicas": True}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A primary without replicas."""
    server = RedisServer(tmp_path / "primary", "--repl-diskless-sync-delay", "0").start()
    yield server
    server.stop()


def opened(server: RedisServer, replicas_min: int = 1) -> RedisRegistry:
    """The registry there; replicas have little time to confirm."""
    return RedisRegistry(
        parse_store_url(server.url), LIFECYCLE, replication=Replication(replicas_min, timeout_s=0.2)
    )


async def test_change__on_one_server_alone_lacks_no_replicas(server: RedisServer) -> None:
    """The answer says that it is not durable; there is nothing to warn of at each change."""
    registry = opened(server)
    await add_people(registry)
    made = await registry.apply(request(create()))
    assert durability_view(registry, made.is_durable) == ALONE
    await registry.aclose()


def test_change__that_a_replica_does_not_confirm_lacks_replicas(server: RedisServer, tmp_path: Path) -> None:
    """While it hangs, and also once the primary has given it up: it was there."""
    replica = RedisServer(tmp_path / "replica", "--replicaof", f"{LOOPBACK} {server.port}").start()

    async def scenario() -> None:
        registry = opened(server)
        eventually(lambda: server.client.role()[2])
        await add_people(registry)
        made = await registry.apply(request(create()))
        assert durability_view(registry, made.is_durable) == {"is_durable": True, "lacks_replicas": False}
        assert replica.process is not None
        replica.process.send_signal(signal.SIGSTOP)
        made = await registry.apply(request(Suspend(integration_id=ID, reason="leaked")))
        assert durability_view(registry, made.is_durable) == LACKING
        replica.process.send_signal(signal.SIGCONT)
        replica.stop()
        eventually(lambda: not server.client.role()[2])
        made = await registry.apply(request(create("beta")))
        assert durability_view(registry, made.is_durable) == LACKING
        await registry.aclose()

    try:
        run(scenario())
    finally:
        replica.stop()


async def test_commands__on_the_registry_itself_tell_that_replicas_are_lacking(
    server: RedisServer, tmp_path: Path
) -> None:
    """`bootstrap`, `push` and `apply`; two replicas are asked for, and there is none."""
    file = tmp_path / "registry.yaml"
    file.write_text("integrations: [{id: acme, name: Acme}]")
    catalogue = ScopeCatalogue()
    declared = load_declarations(file, str(file), catalogue).declarations

    registry = opened(server, replicas_min=2)
    made = await create_first_administrator(registry, "ann", "Ann", 3_600)
    assert (made.is_durable, made.lacks_replicas) == (False, True)
    actor = ANN.__class__("ann", ANN.role, made.token_id)
    asked = ApplyRequest(declared, "declared", actor, CONTEXT, registry.now_us())
    view, _ = await apply_declared(registry, catalogue, asked)
    assert view["report"] is not None
    assert {name: view["report"][name] for name in LACKING} == LACKING  # type: ignore[literal-required]
    await registry.aclose()

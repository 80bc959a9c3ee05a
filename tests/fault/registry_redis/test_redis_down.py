"""Redis goes away: the follower, the bucket store and anyone who administers say so soon, and name it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import RegistryUnavailableError
from sidecar.stores.registry.redis import nodes
from sidecar.stores.registry.redis.nodes import REPLY_TIMEOUT_S
from tests.building import make_metrics
from tests.redis_servers import RedisServer
from tests.store_harness import ready

from .test_replaced import FollowingSidecar, founded, is_loaded

TOLD_S = 2.0
SLACK_S = 20.0
"""For a machine that has other things to do."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A separate server, which can be ended and frozen."""
    server = RedisServer(tmp_path).start()
    yield server
    server.stop()


@pytest.mark.parametrize("how", ["ended", "frozen"])
async def test_redis_down__is_reported_by_everything_that_knows(
    how: str, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within two seconds: the store's state and gauges, the registry's state and gauge, each failed call."""
    monkeypatch.setattr(nodes, "REPLY_TIMEOUT_S", REPLY_TIMEOUT_S)
    await founded(server)
    sidecar = FollowingSidecar(server)
    metrics = make_metrics()
    store = RedisBucketStore(parse_store_url(f"{server.url}?partitions=3"), metrics)
    await store.start()
    await sidecar.until(is_loaded)
    await sidecar.registry.changes_since(await sidecar.registry.revision(), 0.05)
    began_s = monotonic()
    if how == "ended":
        server.kill()
    else:
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
    await ready(store, False)
    await sidecar.until(lambda one: bool(one.trouble))
    assert monotonic() - began_s < TOLD_S + SLACK_S
    assert f"127.0.0.1:{server.port}" in store.trouble
    assert metrics.value("sidecar_store_breakers_open") == 1
    assert f"127.0.0.1:{server.port}" in sidecar.trouble
    assert not sidecar.trouble.endswith(": ")  # a frozen server ends the wait by an exception without a text
    assert sidecar.metrics.value("sidecar_registry_in_touch") == 0
    began_s = monotonic()
    with pytest.raises(RegistryUnavailableError, match=f"127.0.0.1:{server.port}"):
        await sidecar.registry.administrators()
    assert monotonic() - began_s < TOLD_S + SLACK_S
    await store.close()
    await sidecar.close()

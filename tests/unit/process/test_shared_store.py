"""The shared store of one process: the count of sidecars, its share of the limits, and what of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.domain.fail_policy import FailPolicy
from sidecar.observe.metrics import Metrics
from sidecar.process.config import load_config
from sidecar.process.shared_store import SharedStore
from sidecar.process.wiring import LoadedConfig, build_sidecar
from sidecar.stores.local_share import FORGET_AFTER_US, LocalShare
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import parse_store_url
from sidecar.transports.fast import FastGrpcServer
from tests.building import ManualClock, make_metrics
from tests.store_harness import bucket
from tests.waiting import run


@pytest.fixture
def metrics() -> Metrics:
    """What the store counts."""
    return make_metrics()


@pytest.fixture
def shared(metrics: Metrics) -> SharedStore:
    """A store that is not asked."""
    url = parse_store_url("redis://127.0.0.1:1")
    return SharedStore(url, metrics, "a", checks_generation=False, timeout_s=0.05, policy=FailPolicy.LOCAL)


def test_beat__sets_the_share_and_the_metric(shared: SharedStore, metrics: Metrics) -> None:
    """Each answered heartbeat gives the number of sidecars that share the limits."""
    shared.on_heartbeat(7)
    assert shared.fallback.local.live_sidecars == 7
    assert metrics.value("sidecar_store_live_sidecars") == 7


@pytest.mark.parametrize(("is_ready", "kept"), [(True, 0), (False, 1)])
def test_beat__forgets_what_was_used_once_the_store_is_back(
    shared: SharedStore, monkeypatch: pytest.MonkeyPatch, is_ready: bool, kept: int
) -> None:
    """A minute after the last take without the store its memory is free; not while it is away."""
    clock = ManualClock()
    local = LocalShare(clock)
    shared.fallback.local = local
    monkeypatch.setattr(RedisBucketStore, "is_ready", property(lambda self: is_ready))
    local.take_now(bucket(), 1)
    clock.advance(us=FORGET_AFTER_US - 1)
    shared.on_heartbeat(1)
    assert len(local) == 1
    clock.advance(us=1)
    shared.on_heartbeat(1)
    assert len(local) == kept


def test_loop_turn__is_shared_by_store_and_transport(tmp_path: Path) -> None:
    """Store and transport are given one `LoopTurn`: each says there when the other may send."""
    file = tmp_path / "sidecar.yaml"
    file.write_text("{store: 'redis://127.0.0.1:1', listen: {grpc: '127.0.0.1:0', admin: []}}")
    sidecar = run(build_sidecar(LoadedConfig(load_config(file, {})), make_metrics()))
    assert sidecar.shared is not None
    assert isinstance(sidecar.server, FastGrpcServer)
    assert sidecar.shared.buckets.turn is sidecar.server.turn

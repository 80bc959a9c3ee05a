"""
Bucket stores under test: where each kind of Redis is, and takes that can be awaited.

    harness = StoreHarness("cluster")
    store = harness.store()
    taken = await take(store, buckets)
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from sidecar.domain.bucket import BucketSet, Quota, Taken
from sidecar.observe.metrics import Metrics
from sidecar.stores.protocols import BucketStore, StoreFault
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.limits import StoreLimits
from sidecar.stores.redis.urls import StoreUrl, parse_store_url
from tests.building import make_metrics
from tests.redis_servers import LOOPBACK, shared
from tests.waiting import PATIENCE_S

Result = TypeVar("Result")


KINDS = ("standalone", "unix", "tls", "guarded", "sentinel", "cluster")

PATIENT = StoreLimits(
    call_timeout_s=5, link_timeout_s=10, connect_timeout_s=5, discovery_timeout_s=5, denial_s_max=0
)
"""Bounds that a machine under load does not reach; nothing is refused from memory."""


def url_of(kind: str, prefix: str, **options: str) -> StoreUrl:
    """The shared server of *kind*."""
    servers = shared()
    query = "&".join(f"{name}={value}" for name, value in {"prefix": prefix, **options}.items())
    if kind == "unix":
        return parse_store_url(f"unix://{servers.unix.folder}/socket?{query}")
    if kind == "tls":
        port, files = servers.tls.tls_port, servers.tls_files
        query += f"&ca_file={files.ca}&cert_file={files.client_cert}&key_file={files.client_key}"
        return parse_store_url(f"rediss://{LOOPBACK}:{port}?{query}")
    if kind == "guarded":
        return parse_store_url(f"redis://limited:correct@{LOOPBACK}:{servers.guarded.port}?{query}")
    return parse_store_url(f"{getattr(servers, kind).url}?{query}")


class StoreHarness:
    """One kind of Redis, and a key prefix that nobody else uses."""

    def __init__(self, kind: str) -> None:
        """Keys under a fresh prefix."""
        self.kind = kind
        self.prefix = f"sidecar:{secrets.token_hex(4)}:"
        self.metrics = make_metrics()

    def url(self, **options: str) -> StoreUrl:
        """Where the store is."""
        return url_of(self.kind, self.prefix, **options)

    def store(
        self,
        clock_us: Callable[[], int] | None = None,
        *,
        metrics: Metrics | None = None,
        url: StoreUrl | None = None,
        checks_generation: bool = False,
        **limits: Any,
    ) -> RedisBucketStore:
        """A store, not yet started; *limits* change the patient ones."""
        return RedisBucketStore(
            url or self.url(),
            metrics or self.metrics,
            replace(PATIENT, **limits),
            checks_generation=checks_generation,
            override_clock_us=clock_us,
        )


async def take(
    store: BucketStore, buckets: BucketSet, asked: int = 1, timeout_s: float = PATIENCE_S
) -> Taken | StoreFault:
    """One take, however long it needs; checks that `done` is called once and not at once."""
    outcome = store.take_now(buckets, asked)
    if outcome is not None:
        return outcome
    future: asyncio.Future[Taken | StoreFault] = asyncio.get_running_loop().create_future()
    store.take_later(buckets, asked, timeout_s, future.set_result)  # a second call would raise
    assert not future.done()
    return await future


async def take_all(
    store: BucketStore, takes: list[tuple[BucketSet, int]], timeout_s: float = PATIENCE_S
) -> list[Taken | StoreFault]:
    """Takes that meet in one turn of the loop."""
    return list(await asyncio.gather(*(take(store, buckets, asked, timeout_s) for buckets, asked in takes)))


async def ready(store: RedisBucketStore, is_ready: bool = True) -> None:
    """Wait until the store says that it is, or is not, ready."""
    if store.is_ready is is_ready:
        return
    changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    before = store.on_state_change

    def note(state: bool) -> None:
        if before is not None:
            before(state)
        if state is is_ready and not changed.done():
            changed.set_result(None)

    store.on_state_change = note
    try:
        await asyncio.wait_for(changed, PATIENCE_S)
    finally:
        store.on_state_change = before


def bucket(
    name: str = "acme", limit_rpm: int = 60, burst: int = 3, *, generation: int = 1, cost: int = 1
) -> BucketSet:
    """The one bucket of integration *name*."""
    return BucketSet(name, generation, (name,), (Quota.per_minute(limit_rpm, burst),), cost)

"""Whatever goes wrong at whichever command: every take is answered in its time, and the store recovers."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from sidecar.domain.bucket import Taken
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.bucket_store import RedisBucketStore
from sidecar.stores.redis.urls import parse_store_url
from tests.redis_servers import LOOPBACK, shared
from tests.store_harness import StoreHarness, bucket, ready, take, take_all
from tests.waiting import until

from .proxy import Fault, FaultProxy

TIMEOUT_S = 0.05
BURST = 1_000_000
SLACK_S = 4.0
"""How late an answer may be on a busy machine; without the take's own timeout it comes after 5 s."""

PROBES_MAX = 8
RECOVERY_S = 60.0
"""A store that is well again is used again within a second; the rest is for a busy machine."""

HANDSHAKE = ["CLIENT", "INFO", *["SCRIPT"] * 3, *["GET"] * 4, "SET", "GET"]
"""With a new store: it has no layout yet, and no key of a fleet without one."""
SILENT = (Fault.STALL, Fault.BLACK_HOLE, Fault.HOLD)
"""After these nothing answers, so that only a timeout of the store ends the wait."""

QUICK = {
    "call_timeout_s": 0.05,
    "link_timeout_s": 0.1,
    "connect_timeout_s": 0.15,
    "discovery_timeout_s": 0.1,
    "probe_after_s": 0.05,
}
"""Timeouts that also expire without a fault on a busy machine: the store then connects once more."""


async def timed_take(store: RedisBucketStore, name: str = "acme") -> Taken | StoreFault:
    """A take with the usual patience, answered in its time."""
    began_s = monotonic()
    outcome = await take(store, bucket(name, limit_rpm=1, burst=BURST), timeout_s=TIMEOUT_S)
    assert monotonic() - began_s < TIMEOUT_S + SLACK_S
    return outcome


async def survive(harness: StoreHarness, proxy: FaultProxy) -> None:
    """Start, take through the fault, heal, take again; nothing may be left."""
    await proxy.start()
    store = harness.store(
        url=parse_store_url(f"redis://{LOOPBACK}:{proxy.port}?prefix={harness.prefix}"),
        **(QUICK if proxy.fault in SILENT else {"probe_after_s": QUICK["probe_after_s"]}),
    )
    await store.start()
    outcomes = [await timed_take(store) for _ in range(6)]
    async with asyncio.timeout(RECOVERY_S):  # a connection that took too long begins its handshake again
        while not proxy.tripped.is_set():
            outcomes.append(await timed_take(store))
            await asyncio.sleep(0)
    proxy.heal()
    await ready(store)
    async with asyncio.timeout(RECOVERY_S):
        while not isinstance(outcome := await timed_take(store), Taken):  # noqa: ASYNC110 - each turn asks
            await asyncio.sleep(0)
    # A refusal costs nothing and a take at most one: what was answered as a fault may have been taken once.
    taken = sum(isinstance(outcome, Taken) for outcome in outcomes) + 1
    assert BURST - len(outcomes) - 1 - outcome_slack(proxy) <= outcome.remaining <= BURST - taken
    assert store.is_idle
    await store.close()
    await proxy.close()
    assert proxy.connections == 0


def outcome_slack(proxy: FaultProxy) -> int:
    """Takes after the fault that the loop above made before one passed: at most each call of the script."""
    return proxy.commands.count("EVALSHA")


@pytest.mark.parametrize("number", range(1, len(HANDSHAKE) + 5))
@pytest.mark.parametrize("fault", Fault, ids=[fault.name.lower() for fault in Fault])
async def test_store__survives_any_fault_at_any_command(fault: Fault, number: int) -> None:
    """From the first word of the handshake to the fourth take."""
    harness = StoreHarness("standalone")

    proxy = FaultProxy(shared().standalone.port, fault, number)
    await survive(harness, proxy)
    if fault not in SILENT:
        assert proxy.commands[: min(number, len(HANDSHAKE))] == HANDSHAKE[:number]
    assert proxy.tripped.is_set()


@pytest.mark.parametrize("fault", Fault, ids=[fault.name.lower() for fault in Fault])
async def test_store__a_crowd_is_answered_through_a_fault(fault: Fault) -> None:
    """Five hundred takes in the air when it happens: each answered once, in its time, no call more."""
    harness = StoreHarness("standalone")

    proxy = FaultProxy(shared().standalone.port, fault, len(HANDSHAKE) + 2)
    await proxy.start()
    url = parse_store_url(f"redis://{LOOPBACK}:{proxy.port}?prefix={harness.prefix}")
    store = harness.store(url=url, **QUICK, groups_max=16, keepalive_s=60)
    await store.start()
    began_s = monotonic()
    outcomes = await take_all(store, [(bucket(f"crowd{i % 100}"), 1) for i in range(500)], TIMEOUT_S)
    assert monotonic() - began_s < TIMEOUT_S + SLACK_S
    assert len(outcomes) == 500
    # At most the crowd's own batches of 16 different buckets, and a few probes; not each batch twice.
    assert proxy.commands.count("EVALSHA") <= -(-500 // 16) + PROBES_MAX
    proxy.heal()
    await ready(store)
    # A link that nothing comes over is given up at its own time-out, which may be after the answers.
    await until(lambda: store.is_idle)
    await store.close()
    await proxy.close()


async def test_store__nobody_waits_for_a_store_that_hangs() -> None:
    """Once the breaker is open takes are refused at once and no call is made but probes."""
    harness = StoreHarness("standalone")

    proxy = FaultProxy(shared().standalone.port, Fault.HOLD, len(HANDSHAKE) + 1)
    await proxy.start()
    url = parse_store_url(f"redis://{LOOPBACK}:{proxy.port}?prefix={harness.prefix}")
    # The link is kept, so that only the breaker protects.
    store = harness.store(
        url=url, call_timeout_s=0.02, link_timeout_s=30, probe_after_s=0.02, in_flight_max=4
    )
    await store.start()
    while store.is_ready:
        await timed_take(store)
    calls = harness.metrics.value("sidecar_store_calls_total")
    outcomes = await take_all(store, [(bucket(), 1)] * 1_000)
    assert set(outcomes) == {StoreFault.UNAVAILABLE}
    assert harness.metrics.value("sidecar_store_calls_total") == calls
    assert proxy.commands.count("EVALSHA") <= calls + 1  # one probe is out and stays so
    proxy.heal()
    await ready(store)
    assert harness.metrics.value("sidecar_store_breakers_open") == 0
    async with asyncio.timeout(RECOVERY_S):
        while not isinstance(await timed_take(store), Taken):  # noqa: ASYNC110 - each turn asks
            await asyncio.sleep(0)
    await store.close()
    await proxy.close()


async def test_store__close_is_bounded_while_nothing_answers() -> None:
    """Stopping in the middle of a black hole answers everybody and leaves nothing."""
    harness = StoreHarness("standalone")

    proxy = FaultProxy(shared().standalone.port, Fault.BLACK_HOLE, len(HANDSHAKE) + 1)
    await proxy.start()
    url = parse_store_url(f"redis://{LOOPBACK}:{proxy.port}?prefix={harness.prefix}")
    store = harness.store(url=url)
    await store.start()
    waiting = [asyncio.ensure_future(take(store, bucket(f"b{index}"), timeout_s=60)) for index in range(50)]
    await proxy.tripped.wait()
    await store.close()
    assert await asyncio.gather(*waiting) == [StoreFault.UNAVAILABLE] * 50
    assert store.is_idle
    await proxy.close()

"""
Suspensions during failovers: an acknowledged suspension is never lost, and no later request is admitted.

Administrators suspend one integration after another while the primary behind Sentinels fails in one of
several ways, and the sidecars get requests of all integrations the whole time.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, monotonic_ns, sleep
from typing import Any

import redis

from loadtest.failover.scene import FailoverError
from loadtest.failover.stores import SILENCE_MS
from loadtest.redis_servers import LOOPBACK, QUICK_REPLICATION, SERVICE, RedisServer, SentinelGroup
from loadtest.revocation.administrator import Administrator, name_of
from sidecar.domain.integrations import Status
from sidecar.services.ext_authz_client import read_status
from sidecar.stores.redis.urls import parse_store_url
from sidecar.stores.registry.protocol import RegistryError
from sidecar.stores.registry.verification import verify_registry
from sidecar.verify.callers import Call, Caller
from sidecar.verify.sidecars import Fleet, child_environment
from sidecar.verify.subjects import ROUTES, message_of

WAYS = ("manual", "kill", "stall-2.2", "stall-3.0")
"""SENTINEL FAILOVER, kill -9, and a primary that is stopped for 2.2 or 3.0 seconds."""
SIDECARS, CONNECTIONS, IN_FLIGHT = 2, 2, 48
CALLS_PER_S = 1_500.0
ADMINISTRATORS = 4
INTEGRATIONS = 80
"""Integrations of a round; each administrator suspends one after another."""
LEAD_S, AFTER_S = 0.7, 3.0
"""Load before the failover, and after the promotion, while the old primary may still be running."""
PAUSE_S = 0.12
STEP_TIMEOUT_S = 60.0
LOOK_INTERVAL_S = 0.005


@dataclass(slots=True)
class SuspensionRound:
    """The results of one failover."""

    way: str
    requests: int = 0
    failed: int = 0
    sent_after: int = 0
    admitted_after: int = 0
    acknowledged: int = 0
    not_durable: int = 0
    errors: int = 0
    lost: int = 0
    slowest_ms: float = 0.0
    is_intact: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether acknowledged suspensions were kept and effective, and the audit log is intact."""
        return not self.lost and not self.admitted_after and self.is_intact and self.acknowledged > 0

    def as_json(self) -> dict[str, Any]:
        """Return all counts."""
        return {
            "verdict": "kept" if self.is_kept else "broken",
            "way": self.way,
            "requests": self.requests,
            "answered_503": self.failed,
            "sent_after_acknowledgement": self.sent_after,
            "admitted_after_acknowledgement": self.admitted_after,
            "acknowledged": self.acknowledged,
            "acknowledged_not_durable": self.not_durable,
            "errors_told": self.errors,
            "acknowledged_and_lost": self.lost,
            "slowest_acknowledgement_ms": round(self.slowest_ms),
        }


@dataclass(slots=True)
class Load:
    """Sends requests of a round's integrations in turn. Implements `callers.CallHandler`."""

    messages: Sequence[bytes]
    numbers: range = range(0)
    seen: SuspensionRound = field(default_factory=lambda: SuspensionRound(""))
    lost: set[int] = field(default_factory=set)
    acknowledged_ns: dict[int, int] = field(default_factory=dict)
    """When each suspension was acknowledged as durable."""
    turn: int = 0

    def next_call(self, caller: int) -> Call | None:
        """Return a call of the round's next integration."""
        if not self.numbers:
            return None
        self.turn += 1
        number = self.numbers[self.turn % len(self.numbers)]
        return Call(self.messages[number], number)

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Count the answer."""
        status = read_status(message) if message else 0
        self.seen.requests += 1
        self.seen.failed += status == 503
        if sent_ns > self.acknowledged_ns.get(tag, sent_ns):
            self.seen.sent_after += 1
            self.seen.admitted_after += status == 200


async def fail_over_while_suspending(
    ways: Sequence[str], silence_ms: int = SILENCE_MS
) -> AsyncIterator[SuspensionRound]:
    """
    Run one round for each of *ways*, on one store where a primary is replaced after *silence_ms*.

    Raises:
        FailoverError, RedisServerError, SidecarsError, RegistryError: the run failed.
    """
    async with AsyncExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-suspensions-")))
        group = await asyncio.to_thread(SentinelGroup, folder / "store", silence_ms)
        undo.push_async_callback(asyncio.to_thread, group.stop)
        administrator = Administrator(parse_store_url(group.url))
        undo.push_async_callback(administrator.close)
        keys = await administrator.prepare(INTEGRATIONS * len(ways))
        fleet = Fleet(folder, SIDECARS, {"routes": ROUTES}, child_environment(group.url))
        await undo.enter_async_context(fleet)
        load = Load([message_of(key) for key in keys])
        targets = [target for target in fleet.targets for _ in range(CONNECTIONS)]
        callers = [
            Caller(number, target, load, IN_FLIGHT, CALLS_PER_S / len(targets))
            for number, target in enumerate(targets)
        ]
        for caller in callers:
            caller.start()
            undo.push_async_callback(caller.stop)
        for index, way in enumerate(ways):
            load.numbers = range(index * INTEGRATIONS, (index + 1) * INTEGRATIONS)
            load.seen = SuspensionRound(way)
            for caller in callers:
                caller.wake()
            await _run_round(way, group, load, administrator)
            load.numbers = range(0)
            await asyncio.to_thread(_restore_replicas, group)
            await _check_registry(group, load)
            yield load.seen


async def _run_round(way: str, group: SentinelGroup, load: Load, administrator: Administrator) -> None:
    """Make the primary fail in one *way* while integrations are suspended."""
    primary = await asyncio.to_thread(lambda: group.primary)
    waiting = list(load.numbers)
    over = asyncio.Event()
    suspending = [
        asyncio.create_task(_suspend(waiting, over, load, administrator)) for _ in range(ADMINISTRATORS)
    ]
    try:
        await asyncio.sleep(LEAD_S)
        if way == "manual":
            await asyncio.to_thread(_order_failover, group)
        elif way == "kill":
            await asyncio.to_thread(primary.kill)
        else:
            primary.freeze()
            await asyncio.sleep(float(way.partition("-")[2]))
            primary.thaw()
        await asyncio.to_thread(_await_promotion, group, primary, is_required=not way.startswith("stall"))
        await asyncio.sleep(AFTER_S)
    finally:
        over.set()
        await asyncio.gather(*suspending)


async def _suspend(waiting: list[int], over: asyncio.Event, load: Load, administrator: Administrator) -> None:
    """Suspend one integration after another until the round is *over*; retry failed suspensions."""
    while waiting and not over.is_set():
        number = waiting.pop(0)
        while not over.is_set():
            began_ns = monotonic_ns()
            try:
                committed = await administrator.suspend(number)
            except RegistryError:
                load.seen.errors += 1
                continue
            now_ns = monotonic_ns()
            load.seen.slowest_ms = max(load.seen.slowest_ms, (now_ns - began_ns) / 1e6)
            if committed.is_durable:
                load.acknowledged_ns[number] = now_ns
                load.seen.acknowledged += 1
            else:
                load.seen.not_durable += 1
            break
        await asyncio.sleep(PAUSE_S)


async def _check_registry(group: SentinelGroup, load: Load) -> None:
    """Check on the successor, with a new client, that no acknowledged suspension is lost."""
    registry = Administrator(parse_store_url(group.url)).registry
    try:
        view = await registry.load_all()
        suspended = {record.id for record in view.records if record.status is Status.SUSPENDED}
        # Including those of earlier rounds, which a later failover must not undo.
        lost = {number for number in load.acknowledged_ns if name_of(number) not in suspended}
        load.seen.lost = len(lost - load.lost)
        load.lost |= lost
        load.seen.is_intact = (await verify_registry(registry)).is_intact
    finally:
        await registry.aclose()


def _order_failover(group: SentinelGroup) -> None:
    """Send SENTINEL FAILOVER until a Sentinel accepts it."""
    _until(lambda: _try_failover(group), "the Sentinels start a failover")


def _try_failover(group: SentinelGroup) -> bool:
    try:
        group.sentinels[0].client.execute_command("SENTINEL FAILOVER", SERVICE)
    except redis.ResponseError:  # INPROG, NOGOODSLAVE
        return False
    return True


def _await_promotion(group: SentinelGroup, former: RedisServer, *, is_required: bool) -> None:
    """Wait until all Sentinels name another primary; after a stall, the primary may stay."""
    try:
        _until(lambda: all(port != former.port for port in _named(group)), "the Sentinels name a successor")
    except FailoverError:
        if is_required:
            raise


def _named(group: SentinelGroup) -> list[int]:
    return [int(sentinel.client.sentinel_get_master_addr_by_name(SERVICE)[1]) for sentinel in group.sentinels]


def _restore_replicas(group: SentinelGroup) -> None:
    """Make all other servers replicas of the primary, and wait until the Sentinels report them."""
    primary = group.primary
    for server in group.servers:
        if server is primary:
            continue
        if server.process is None or server.process.poll() is not None:
            server.options = ("--replicaof", f"{LOOPBACK} {primary.port}", *QUICK_REPLICATION)
            server.start()
        else:
            server.client.execute_command("REPLICAOF", LOOPBACK, primary.port)
    _until(
        lambda: all(_is_healthy(sentinel.client, primary.port) for sentinel in group.sentinels),
        "all Sentinels report two replicas",
    )


def _is_healthy(sentinel: Any, port: int) -> bool:
    """Return whether a Sentinel reports the primary on *port* with two replicas that it could promote."""
    [primary] = sentinel.sentinel_masters().values()
    replicas = sentinel.sentinel_slaves(SERVICE)
    is_settled = primary["port"] == port and primary["flags"] == "master"
    return (
        is_settled
        and [
            (replica["flags"], replica["master-link-status"], int(replica["master-port"]))
            for replica in replicas
        ]
        == [("slave", "ok", port)] * 2
    )


def _until(fact: Any, what: str) -> None:
    deadline_s = monotonic() + STEP_TIMEOUT_S
    while not fact():
        if monotonic() > deadline_s:
            raise FailoverError(f"not within {STEP_TIMEOUT_S:g} s: {what}")
        sleep(LOOK_INTERVAL_S)

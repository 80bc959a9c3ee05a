"""Whatever happens to the store: every decision is answered in time by its policy, and all is well after."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.domain.fail_policy import FailPolicy
from sidecar.process import shared_store
from sidecar.stores.redis.limits import StoreLimits
from tests.fault.redis.proxy import Fault, FaultProxy
from tests.redis_servers import shared

from .serving import RECOVERY_S, CheckedAnswer, Serving, check_answers, serving

PATIENCE_S = 90.0
HANDSHAKE = ["CLIENT", "INFO", "SCRIPT", "SCRIPT", "GET"]
"""Commands before the first take of a connection."""
OPTIONAL = ("CLIENT", "INFO")
"""Commands that a server may refuse: takes wait for the connection, and none of them fails."""
COMMANDS = range(1, len(HANDSHAKE) + 4)
QUICK = StoreLimits(
    link_timeout_s=0.1, connect_timeout_s=0.15, discovery_timeout_s=0.1, probe_after_s=0.05, backoff_max_s=0.1
)
"""Less patience than is usual, so that many faults fit into little time."""

LASTING = (Fault.STALL, Fault.BLACK_HOLE, Fault.HOLD)
"""From these on nothing is answered until the proxy heals, or a new connection is made."""

each_fault = pytest.mark.parametrize("fault", Fault, ids=[fault.name.lower() for fault in Fault])


def proxy() -> FaultProxy:
    """A proxy before the Redis of the tests; it spoils nothing yet."""
    return FaultProxy(shared().standalone.port)


async def through(sidecar: Serving, proxy: FaultProxy) -> list[CheckedAnswer]:
    """Ask until the proxy has spoilt the command it is armed for, and two rounds more."""
    answers: list[CheckedAnswer] = []
    async with asyncio.timeout(RECOVERY_S):
        while not proxy.tripped.is_set():
            answers += await sidecar.ask_each()
    for _ in range(2):
        answers += await sidecar.ask_each()
    return answers


@each_fault
async def test_decisions__any_fault_at_any_command(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first word of a new connection to the third take on it, again and again with one sidecar."""
    monkeypatch.setattr(shared_store, "store_limits", lambda timeout_s: QUICK)

    before = proxy()
    async with serving(tmp_path, before) as sidecar:
        await sidecar.recover()
        for number in COMMANDS:
            asked, calls, seen = sidecar.asked, sidecar.store_calls(), len(before.commands)
            before.arm(fault, number)
            before.cut()
            answers = await through(sidecar, before)
            check_answers(answers)
            is_harmless = fault is Fault.ERROR and before.commands[before.at - 1] in OPTIONAL
            assert any(answer.is_by_policy for answer in answers) or is_harmless
            assert set(before.commands[seen : seen + min(number, len(HANDSHAKE))]) <= set(HANDSHAKE)
            before.heal()
            await sidecar.recover()
            # A decision makes one call at most, whatever becomes of it; calls are shared, never repeated.
            assert sidecar.store_calls() - calls <= sidecar.asked - asked
        await sidecar.nothing_is_left()


@each_fault
async def test_decisions__a_crowd_through_a_fault(fault: Fault, tmp_path: Path) -> None:
    """Three hundred requests in the air when it happens: each is answered, and the store is used again."""
    before = proxy()
    async with serving(tmp_path, before) as sidecar:
        await sidecar.recover()
        calls = sidecar.store_calls()
        before.arm(fault)
        answers = await sidecar.ask_each(times=100)
        check_answers(answers)
        assert len(answers) == 300
        assert before.tripped.is_set()
        assert any(answer.is_by_policy for answer in answers)
        # Three buckets: a batch holds all takes of each, and few batches fit into the time.
        assert sidecar.store_calls() - calls < 100
        if fault in LASTING:
            await sidecar.until(is_by_policy=True)
        before.heal()
        await sidecar.recover()
        await sidecar.nothing_is_left()
        fallbacks = {
            policy: sidecar.metrics.value("sidecar_store_fallbacks_total", policy.value, verdict)
            for policy, verdict in (
                (FailPolicy.DENY, "DENY_403"),
                (FailPolicy.ALLOW, "ALLOW"),
                (FailPolicy.LOCAL, "ALLOW"),
            )
        }
        assert all(fallbacks[answer.policy] for answer in answers if answer.is_by_policy)


async def test_decisions__nobody_waits_for_a_store_that_is_known_to_hang(tmp_path: Path) -> None:
    """Once the breaker is open no decision makes a call, and each policy answers at once."""
    before = proxy()
    async with serving(tmp_path, before) as sidecar:
        await sidecar.recover()
        before.arm(Fault.BLACK_HOLE)
        await through(sidecar, before)
        assert sidecar.sidecar.shared is not None
        async with asyncio.timeout(RECOVERY_S):
            while sidecar.sidecar.shared.buckets.is_ready:
                check_answers(await sidecar.ask_each())
        calls = sidecar.store_calls()
        answers = await sidecar.ask_each(times=50)
        assert {answer.is_by_policy for answer in answers} == {True}
        check_answers(answers)
        assert sidecar.store_calls() == calls
        before.heal()
        await sidecar.recover()
        await sidecar.nothing_is_left()


async def test_decisions__never_past_the_caller_s_deadline(tmp_path: Path) -> None:
    """A store that may take ten seconds is waited for as long as the caller says, and no longer."""
    deadline_s = 6.0

    before = proxy()
    async with serving(tmp_path, before, store_timeout_ms=10_000) as sidecar:
        await sidecar.recover()
        before.arm(Fault.STALL)
        answers = await sidecar.ask_each(timeout_s=deadline_s)
        check_answers(answers)
        assert {answer.is_by_policy for answer in answers} == {True}
        before.heal()


def test_decisions__the_usual_bounds_allow_for_recovery_within_a_second() -> None:
    """What may lie between a store that is well again and the next take: one wait, and one way to connect."""
    usual = shared_store.store_limits(0.05)
    assert usual == StoreLimits()
    jitter_max = 1.25
    lost_at_once = usual.backoff_max_s * jitter_max + usual.discovery_timeout_s
    hung = usual.probe_after_s * jitter_max + usual.call_timeout_s
    assert max(lost_at_once, hung) < 1.0


def test_decisions__more_time_for_the_store_is_no_failure_of_it() -> None:
    """A longer store_timeout_ms moves the bounds of the node along; a shorter one moves none."""
    assert shared_store.store_limits(0.005) == StoreLimits()
    assert shared_store.store_limits(2.0) == replace(StoreLimits(), call_timeout_s=2.0, link_timeout_s=4.0)

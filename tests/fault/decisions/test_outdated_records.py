"""A suspension that the store knows and this sidecar cannot read: no policy opens the door."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.domain.changes import Revision
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.stores.registry.protocol import Changes, RegistryError
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import ANN, LIFECYCLE, request
from tests.fault.redis.proxy import FaultProxy
from tests.redis_servers import shared
from tests.registry_in_redis import add_people, create_for
from tests.waiting import until

from .serving import MARK, POLICIES, Serving, check_answers, serving


async def loaded(sidecar: Serving) -> RedisRegistry:
    """Put the integrations into the sidecar's registry, and wait until they are in force."""
    assert sidecar.sidecar.shared is not None
    registry = RedisRegistry(sidecar.sidecar.shared.buckets.url, LIFECYCLE)
    await add_people(registry)
    for policy, key in sidecar.keys.items():
        create = create_for(key, policy.value, on_store_error=policy.value, rate_limit_rpm=10_000)
        await registry.apply(request(create, ANN))
    await until(lambda: len(sidecar.sidecar.decider.snapshot.integrations) == len(POLICIES))
    await sidecar.recover()
    return registry


async def cut_off(monkeypatch: pytest.MonkeyPatch, sidecar: Serving) -> None:
    """From now on this sidecar can ask its registry nothing; its takes still reach the buckets."""
    assert sidecar.sidecar.followed is not None
    registry = sidecar.sidecar.followed.registry

    async def no_record(integration_id: str) -> Integration | None:
        raise RegistryError("the registry cannot be read")

    async def no_changes(revision: Revision, wait_s: float = 0.0) -> Changes:
        raise RegistryError("the registry cannot be read")

    monkeypatch.setattr(registry, "get", no_record)
    monkeypatch.setattr(registry, "changes_since", no_changes)
    sidecar.sidecar.followed.reload()  # ends the wait for changes that has begun
    await until(lambda: not sidecar.metrics.value("sidecar_registry_in_touch"))


async def suspend_all(registry: RedisRegistry) -> None:
    """Commit it; this sidecar does not learn of it but by its takes."""
    for policy in POLICIES:
        await registry.apply(request(c.Suspend(integration_id=policy.value, reason="leak"), ANN))


@pytest.fixture(autouse=True)
def patient_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the registry succeed on a busy machine, too."""


async def test_suspension__is_not_passed_by_a_failing_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refuses the take of an old record, and fails before the new one is read: nobody gets in."""
    proxy = FaultProxy(shared().standalone.port)
    async with serving(tmp_path, proxy, registry=None) as sidecar:
        registry = await loaded(sidecar)
        await cut_off(monkeypatch, sidecar)
        await suspend_all(registry)
        for is_dark in (False, True):
            if is_dark:
                proxy.go_dark()
            answers = await sidecar.ask_each(times=5)
            assert {(answer.status, answer.reason, answer.headers[MARK]) for answer in answers} == {
                (503, "store_unavailable", "deny")
            }
        proxy.heal()
        proxy.cut()
        await registry.aclose()


async def test_policy__of_a_record_in_the_store(tmp_path: Path) -> None:
    """Integrations in the store have policies too; a change of one holds for the next request."""
    proxy = FaultProxy(shared().standalone.port)
    async with serving(tmp_path, proxy, registry=None) as sidecar:
        registry = await loaded(sidecar)
        closed = c.SetOnStoreError(integration_id=FailPolicy.ALLOW.value, on_store_error="deny")
        await registry.apply(request(closed, ANN))
        await sidecar.ask(FailPolicy.ALLOW)
        proxy.go_dark()
        answers = [answer for answer in await sidecar.until(is_by_policy=True) if answer.is_by_policy]
        check_answers([answer for answer in answers if answer.policy is not FailPolicy.ALLOW])
        changed = [answer for answer in answers if answer.policy is FailPolicy.ALLOW]
        assert {(answer.status, answer.headers[MARK]) for answer in changed} == {(503, "deny")}
        proxy.heal()
        proxy.cut()
        await sidecar.until(is_by_policy=False)
        await registry.aclose()

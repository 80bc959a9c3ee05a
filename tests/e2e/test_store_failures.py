"""What a client of a real Envoy sees while Redis is unavailable, by each policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.calling import Answer
from deploy.demo.sidecar import Owner, write_registry
from sidecar.domain.fail_policy import FailPolicy
from tests.e2e.stack import LIMITED_BURST, LIMITED_RPM, Stack, StackKind
from tests.redis_servers import RedisServer
from tests.unit.process.running import STORE_TIMEOUT_MS
from tests.waiting import eventually

PATH = "/v1/inventory/42"
MARK = "x-ratelimit-fallback"
FIGURES = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A separate Redis."""
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


@pytest.fixture
def stack(server: RedisServer) -> Iterator[Stack]:
    """Envoy and a sidecar whose buckets are in that Redis."""
    settings = (("store", server.url), ("store_timeout_ms", STORE_TIMEOUT_MS), ("on_store_error", "local"))
    stack = Stack(StackKind(settings=settings))
    yield stack
    stack.close()


def owners() -> dict[FailPolicy, Owner]:
    """One integration for each policy."""
    fields = {"scopes": ["inventory:read"], "rate_limit_rpm": LIMITED_RPM, "burst": LIMITED_BURST}
    return {
        policy: Owner(f"by-{policy.value}", "By policy", on_store_error=policy.value, **fields)
        for policy in FailPolicy
    }


def marks(answers: list[Answer]) -> set[str]:
    """The marks of *answers*; each has exactly one."""
    return {answer.one(MARK) for answer in answers}


def test_envoy__passes_on_what_each_policy_answers(stack: Stack, server: RedisServer) -> None:
    """Deny is a 503, allow has no limits, local is its share and then 429; marked until Redis is back."""
    by = owners()
    write_registry(stack.registry, [*stack.people.registered, *by.values()])
    eventually(lambda: stack.get(PATH, by[FailPolicy.ALLOW]).status == 200, what="the registry is in force")
    assert stack.get(PATH, by[FailPolicy.ALLOW]).all(MARK) == []
    server.kill()
    answers = {policy: [stack.get(PATH, owner) for _ in range(5)] for policy, owner in by.items()}
    statuses = {policy: [answer.status for answer in reported] for policy, reported in answers.items()}
    assert statuses == {
        FailPolicy.DENY: [503] * 5,
        FailPolicy.ALLOW: [200] * 5,
        FailPolicy.LOCAL: [200] * LIMITED_BURST + [429] * (5 - LIMITED_BURST),
    }
    assert {policy: marks(reported) for policy, reported in answers.items()} == {
        policy: {policy.value} for policy in FailPolicy
    }
    shown = {
        policy: {name for answer in given for name, _ in answer.headers} for policy, given in answers.items()
    }
    assert set(FIGURES) <= shown[FailPolicy.LOCAL]
    assert not set(FIGURES) & (shown[FailPolicy.DENY] | shown[FailPolicy.ALLOW])
    refused = stack.get(PATH, stack.people.suspended)
    assert (refused.status, refused.all(MARK)) == (403, [])
    server.start()
    eventually(lambda: stack.get(PATH, by[FailPolicy.DENY]).status == 200, what="the store decides again")
    assert stack.get(PATH, by[FailPolicy.DENY]).all(MARK) == []

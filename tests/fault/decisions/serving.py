"""
A whole sidecar in the test's own event loop, with the fault proxy between it and a real Redis.

    async with serving(tmp_path, proxy) as sidecar:
        answers = await sidecar.ask_each()

It is wired as `sidecar serve` wires it and asked over real gRPC. Each of its integrations has another policy.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import grpc
import yaml

from sidecar.domain.api_keys import NewApiKey, generate_api_key
from sidecar.domain.fail_policy import FailPolicy
from sidecar.process.config import load_config
from sidecar.process.wiring import LoadedConfig, Sidecar, build_sidecar
from sidecar.services.decider import _Pending
from sidecar.services.ext_authz import CHECK
from sidecar.services.ext_authz_client import check_request, read_response
from tests.building import make_metrics
from tests.fault.redis.proxy import FaultProxy
from tests.redis_servers import LOOPBACK

DEADLINE_S = 30.0
"""What a caller grants; the store's 50 ms end long before it, on a busy machine, too."""

RECOVERY_S = 60.0
"""A store that is well again is used again within a second; the rest is for a busy machine."""

MARK = "x-ratelimit-fallback"
FIGURES = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
POLICIES = tuple(FailPolicy)

Keys: TypeAlias = dict[FailPolicy, NewApiKey]
"""Of the integration with each policy."""


class CheckedAnswer(NamedTuple):
    """One answer: of which integration, the HTTP status, its reason and the headers for the client."""

    policy: FailPolicy
    status: int
    reason: str
    headers: dict[str, str]

    @property
    def is_by_policy(self) -> bool:
        """Whether it is marked."""
        return MARK in self.headers


class Serving:
    """One sidecar that runs, and a client of it."""

    def __init__(self, sidecar: Sidecar, keys: Keys, channel: grpc.aio.Channel) -> None:
        """Ask *sidecar* over *channel*, with one key for each policy."""
        self.sidecar = sidecar
        self.metrics = sidecar.metrics
        self.keys = keys
        self.asked = 0
        self._check = channel.unary_unary(CHECK)

    async def ask(self, policy: FailPolicy, timeout_s: float = DEADLINE_S) -> CheckedAnswer:
        """One request of the integration with *policy*; no answer within *timeout_s* is an error."""
        self.asked += 1
        headers = {"x-api-key": self.keys[policy].api_key}
        message = await self._check(check_request("GET", "/v1/orders", headers, LOOPBACK), timeout=timeout_s)
        checked = read_response(message)
        return CheckedAnswer(policy, checked.status, checked.reason, dict(checked.client_headers))

    async def ask_each(self, times: int = 1, timeout_s: float = DEADLINE_S) -> list[CheckedAnswer]:
        """Requests of every integration, all at the same time."""
        asking = [self.ask(policy, timeout_s) for policy in POLICIES for _ in range(times)]
        return list(await asyncio.gather(*asking))

    async def until(self, is_by_policy: bool) -> list[CheckedAnswer]:
        """Ask until all answers of a round come from the policy, or from the store; gives all of them."""
        answers: list[CheckedAnswer] = []
        async with asyncio.timeout(RECOVERY_S):
            while True:
                round_of = await self.ask_each()
                answers += round_of
                if {answer.is_by_policy for answer in round_of} == {is_by_policy}:
                    return answers

    async def recover(self) -> None:
        """Ask until the store answers."""
        check_answers(await self.until(is_by_policy=False))

    def store_calls(self) -> int:
        """Script calls that were sent for decisions."""
        return self.metrics.value("sidecar_store_calls_total")

    async def nothing_is_left(self) -> None:
        """Wait until no call runs, no take waits and no batch is on its way; then no decision may be kept."""
        assert self.sidecar.shared is not None
        async with asyncio.timeout(RECOVERY_S):
            while not self.sidecar.shared.buckets.is_idle:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
            while self.metrics.value("sidecar_calls_running"):  # noqa: ASYNC110 - there is no event for nothing
                await asyncio.sleep(0)
        gc.collect()
        assert not [get_object for get_object in gc.get_objects() if isinstance(get_object, _Pending)]


def check_answers(answers: Sequence[CheckedAnswer]) -> None:
    """Each answer is the store's, or what its integration's policy gives while the store fails."""
    for answer in answers:
        if not answer.is_by_policy:
            assert (answer.status, answer.reason) == (200, "ok")
            assert set(answer.headers) >= FIGURES
            continue
        assert answer.headers[MARK] == answer.policy.value
        if answer.policy is FailPolicy.DENY:
            assert (answer.status, answer.reason) in ((503, "store_unavailable"), (503, "overloaded"))
        else:
            assert (answer.status, answer.reason) == (200, "ok")
        assert bool(FIGURES & set(answer.headers)) is (answer.policy is FailPolicy.LOCAL)


def write_config(folder: Path, store: str, keys: Keys, **settings: Any) -> Path:
    """A configuration and its registry in *folder*; *settings* are keys of the configuration."""
    integrations = [
        {
            "id": policy.value,
            "name": policy.value,
            "on_store_error": policy.value,
            "rate_limit_rpm": 10_000,
            "burst": 1_000_000,
            "credentials": [{"id": key.credential_id, "digest": key.digest}],
        }
        for policy, key in keys.items()
    ]
    (folder / "registry.yaml").write_text(yaml.safe_dump({"integrations": integrations}))
    listen = {"grpc": f"{LOOPBACK}:0", "admin": []}
    routes = [{"path": "/v1/**", "scope": "none"}]
    settings = {"listen": listen, "registry": "registry.yaml", "routes": routes, "store": store, **settings}
    file = folder / "sidecar.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return file


@asynccontextmanager
async def serving(folder: Path, proxy: FaultProxy, **settings: Any) -> AsyncIterator[Serving]:
    """A sidecar whose store is behind *proxy*, which is started and ended with it."""
    await proxy.start()
    store = f"redis://{LOOPBACK}:{proxy.port}?prefix=sidecar:{secrets.token_hex(4)}:"
    keys = {policy: generate_api_key() for policy in POLICIES}
    loaded = LoadedConfig(load_config(write_config(folder, store, keys, **settings), {}))
    sidecar = await build_sidecar(loaded, make_metrics())
    (endpoint,) = await sidecar.server.start()
    works: list[Coroutine[Any, Any, None]] = []
    assert sidecar.shared is not None
    works.append(sidecar.shared.run(sidecar.readiness.set))
    if sidecar.followed is not None:
        works.append(sidecar.followed.run(sidecar.readiness.set))
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        async with grpc.aio.insecure_channel(str(endpoint)) as channel:
            yield Serving(sidecar, keys, channel)
    finally:
        await sidecar.server.drain(DEADLINE_S)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if sidecar.followed is not None:
            await sidecar.followed.close()
        await proxy.close()
        assert proxy.connections == 0

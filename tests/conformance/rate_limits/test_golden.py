"""The golden cases of envoyproxy/ratelimit over the wire: both transports, every way to count."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse

from sidecar.rpc.calls import UnaryCall, UnaryMethod
from sidecar.services.rate_limiter import RateLimiter
from sidecar.services.rls import SHOULD_RATE_LIMIT, RateLimitService
from sidecar.stores.embedded_counters import EmbeddedCounterStore
from sidecar.stores.redis.bucket_store import RedisBucketStore
from tests.building import make_metrics
from tests.conformance.transport.background import BackgroundLoop
from tests.conformance.transport.served import TRANSPORTS, Servers
from tests.golden_rate_limits import CASES, NOW_S, VARIANTS, GoldenCase, limits_of, play, style_of
from tests.store_harness import PATIENT, url_of
from tests.waiting import PATIENCE_S


class Replaceable:
    """A method whose service each case replaces, so that all cases share a server and a connection."""

    def __init__(self) -> None:
        """Begin without a service."""
        self.service: RateLimitService | None = None

    def methods(self) -> tuple[UnaryMethod, ...]:
        """The method to bind."""
        return (UnaryMethod(SHOULD_RATE_LIMIT, self._handle),)

    def _handle(self, message: bytes, call: UnaryCall) -> bytes | None:
        assert self.service is not None
        return self.service.should_rate_limit(message, call)


class Asked:
    """A server under test and a client that asks it."""

    def __init__(self, replaceable: Replaceable, target: str) -> None:
        """Connect to *target*."""
        self.replaceable = replaceable
        self.channel = grpc.insecure_channel(target)
        self._call = self.channel.unary_unary(
            SHOULD_RATE_LIMIT, RateLimitRequest.SerializeToString, RateLimitResponse.FromString
        )
        self.failures: list[grpc.StatusCode] = []

    def ask(self, request: RateLimitRequest) -> Any:
        """The answer; None = the call failed."""
        try:
            return self._call(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            self.failures.append(error.code())
            return None


@pytest.fixture(scope="module")
def background() -> Iterator[BackgroundLoop]:
    """The event loop of the servers."""
    loop = BackgroundLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="module", params=sorted(TRANSPORTS))
def asked(
    request: pytest.FixtureRequest, background: BackgroundLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asked]:
    """A server of each transport."""
    folder: Path = tmp_path_factory.mktemp("rls")
    servers = Servers(request.param, background, folder)
    replaceable = Replaceable()
    served = servers.start(methods=replaceable.methods())
    asked = Asked(replaceable, str(served.tcp))
    yield asked
    asked.channel.close()
    servers.close()


@pytest.mark.parametrize("kind", ["standalone", "cluster"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:3])
def test_golden__redis(
    asked: Asked, background: BackgroundLoop, case: GoldenCase, variant: str, kind: str
) -> None:
    """The same answers with the counters in Redis, whose script reads its clock from us here."""
    url = url_of(kind, f"golden-{secrets.token_hex(4)}:")
    metrics = make_metrics()
    store = background.call(
        lambda: RedisBucketStore(url, metrics, PATIENT, override_clock_us=lambda: NOW_S * 1_000_000)
    )
    background.run(store.start())
    try:
        style, limits = style_of(case, variant), limits_of(case, variant)
        limiter = RateLimiter(limits, style, store.counters, metrics, PATIENCE_S)
        asked.replaceable.service = RateLimitService(limiter)
        asked.failures.clear()
        play(case, variant, asked.ask)
        assert set(asked.failures) <= {grpc.StatusCode.INVALID_ARGUMENT}
    finally:
        background.run(store.close())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[:3])
def test_golden__embedded(asked: Asked, case: GoldenCase, variant: str) -> None:
    """Each call has the original's answer, or where we differ on purpose the documented one."""
    store = EmbeddedCounterStore(lambda: NOW_S * 1_000_000)
    limiter = RateLimiter(limits_of(case, variant), style_of(case, variant), store, make_metrics())
    asked.replaceable.service = RateLimitService(limiter)
    asked.failures.clear()
    play(case, variant, asked.ask)
    assert set(asked.failures) <= {grpc.StatusCode.INVALID_ARGUMENT}

"""What ends at a time ends by the clock of the shared store, however wrong a sidecar's own is."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from pathlib import Path

import pytest
import yaml

from sidecar.domain.answers import Decision
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.decisions import Reason
from sidecar.observe.metrics import Metrics
from sidecar.process.config import load_config
from sidecar.process.shared_store import CLOCK_DIFFERENCE_MAX_US, SharedStore
from sidecar.process.wiring import LoadedConfig
from sidecar.services.decider import Decider
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.file.registry_records import iso_time
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import LIFECYCLE
from tests.building import SECOND_US, make_key, make_metrics, make_request
from tests.redis_servers import shared as servers
from tests.store_harness import StoreHarness
from tests.waiting import run

WRONG_BY_S = 600


@pytest.fixture(params=(-WRONG_BY_S, WRONG_BY_S), ids=("behind", "ahead"))
def wrong_by_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The clock of this machine, as this process sees it, is wrong; Redis has the right one."""
    real, by_s = time.time_ns, int(request.param)
    monkeypatch.setattr(time, "time_ns", lambda: real() + by_s * 1_000_000_000)
    return by_s


class ClockedSidecar:
    """A sidecar on a shared store, whose registry holds one integration with some keys."""

    def __init__(self, folder: Path, keys: dict[NewApiKey, int]) -> None:
        """Each of *keys* expires at its time in µs since the epoch."""
        credentials = [
            {"id": key.credential_id, "digest": key.digest, "expires_at": iso_time(at_us)}
            for key, at_us in keys.items()
        ]
        integration = {"id": "acme", "name": "Acme", "rate_limit_rpm": 600, "credentials": credentials}
        (folder / "registry.yaml").write_text(yaml.safe_dump({"integrations": [integration]}))
        prefix = f"sidecar:{secrets.token_hex(4)}:"
        settings = {
            "listen": {"grpc": "127.0.0.1:0", "admin": []},
            "registry": "registry.yaml",
            "routes": [{"path": "/v1/**", "scope": "none"}],
            "store": f"{servers().standalone.url}?prefix={prefix}",
        }
        (folder / "sidecar.yaml").write_text(yaml.safe_dump(settings))
        loaded = LoadedConfig(load_config(folder / "sidecar.yaml", {}))
        self.metrics: Metrics = make_metrics()
        shared = loaded.shared_store(self.metrics)
        assert shared is not None
        self.shared: SharedStore = shared
        self.decider: Decider = loaded.decider(self.metrics, shared)

    async def start(self) -> None:
        """Connect, and beat once."""
        await self.shared.buckets.start()
        self.shared.heartbeat.on_beat = self.shared.on_heartbeat
        assert await self.shared.heartbeat.beat()

    async def ask(self, key: NewApiKey) -> Reason:
        """Why a request with *key* is decided as it is."""
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

        def done(decision: Decision, context: None) -> None:
            decided.set_result(decision)

        decision = self.decider.decide(make_request(key.api_key), None, done, None)
        return (decision or await decided).reason


async def test_expiry__goes_by_the_store_s_time(tmp_path: Path, wrong_by_s: int) -> None:
    """A key of five minutes more is valid, one that ended five minutes ago is not, to every sidecar alike."""
    right_us = wall_clock_us() - wrong_by_s * SECOND_US
    valid, ended = make_key(), make_key()
    minutes_us = 300 * SECOND_US

    sidecar = ClockedSidecar(tmp_path, {valid: right_us + minutes_us, ended: right_us - minutes_us})
    await sidecar.start()
    for _ in range(3):  # the heartbeat gives the first take its time, an earlier take the others
        assert await sidecar.ask(valid) is Reason.OK
        assert await sidecar.ask(ended) is Reason.EXPIRED_CREDENTIAL
    await sidecar.shared.buckets.close()
    assert await sidecar.ask(ended) is Reason.EXPIRED_CREDENTIAL, "also when the store is gone"


def test_difference__is_a_metric_and_reported_once_an_episode(
    tmp_path: Path, wrong_by_s: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Minutes apart is a warning, not one each second; set right and wrong again is another one."""
    wrong = time.time_ns

    async def scenario() -> None:
        sidecar = ClockedSidecar(tmp_path, {make_key(): 2**50})
        await sidecar.start()
        for clock, seconds in ((wrong, -wrong_by_s), (lambda: wrong() - wrong_by_s * 10**9, 0)) * 2:
            monkeypatch.setattr(time, "time_ns", clock)
            for _ in range(3):
                assert await sidecar.shared.heartbeat.beat()
                told_s = sidecar.metrics.value("sidecar_store_clock_difference_seconds")
                assert abs(told_s - seconds) <= 1
        await sidecar.shared.buckets.close()

    with caplog.at_level(logging.WARNING, "sidecar.process"):
        run(scenario())
    assert CLOCK_DIFFERENCE_MAX_US == SECOND_US
    reported = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(reported) == 2


async def test_registry__judges_by_the_time_of_the_redis_that_holds_it(wrong_by_s: int) -> None:
    """Who asks for the holder of a token knows the time by which the token ends, in the same trip."""
    right_us = wall_clock_us() - wrong_by_s * SECOND_US

    registry = RedisRegistry(StoreHarness("standalone").url(), LIFECYCLE)
    assert abs(registry.now_us() - wall_clock_us()) < 5 * SECOND_US, "nothing has been asked yet"
    assert await registry.token_holder("nosuch") is None
    assert abs(registry.now_us() - right_us) < 30 * SECOND_US
    await registry.aclose()

"""Two real `sidecar serve` processes whose Redis is killed and comes back."""

from __future__ import annotations

import json
from pathlib import Path

from sidecar.services.ext_authz_client import Checked
from tests.redis_servers import RedisServer
from tests.unit.process.running import Configured, Running, admin_get, eventually_metric, metric
from tests.waiting import eventually

from .serving import MARK

BURST = 10
RPM = 1
"""So slow that no token comes back during a test."""


def target(sidecar: Running) -> str:
    """Where it takes decisions."""
    address: str = sidecar.event("serving")["grpc"][0]
    return address


def admin(sidecar: Running) -> str:
    """Where its metrics are."""
    address: str = sidecar.event("serving")["admin"][0]
    return address


def mark(answer: Checked) -> str | None:
    """The policy that gave the answer; None = the store did."""
    return dict(answer.client_headers).get(MARK)


def store_state(sidecar: Running) -> str:
    """What /readyz says of the store."""
    state: str = json.loads(admin_get(admin(sidecar), "/readyz")[1])["components"]["store"]["state"]
    return state


def started(configured: Configured, folder: Path) -> Running:
    """One of several processes with one configuration: each has its log in a folder of its own."""
    folder.mkdir()
    return Running(folder, "--config", str(configured.file))


def test_local__shares_the_limit_while_redis_is_gone(tmp_path: Path) -> None:
    """Each of two sidecars grants its half without a pause; with Redis back the limit is one again."""
    server = RedisServer(tmp_path / "redis").start()
    configured = Configured(tmp_path, store=server.url, on_store_error="local")
    configured.write_registry(rate_limit_rpm=RPM, burst=BURST)
    folders = [tmp_path / name for name in ("first", "second")]
    sidecars = [started(configured, folder) for folder in folders]
    try:
        for sidecar in sidecars:
            eventually_metric(admin(sidecar), "sidecar_store_live_sidecars", 2)
        assert mark(configured.ask(target(sidecars[0]))) is None
        server.kill()
        for sidecar in sidecars:
            answers = [configured.ask(target(sidecar)) for _ in range(BURST)]
            assert {mark(answer) for answer in answers} == {"local"}
            assert sum(answer.is_allowed for answer in answers) == BURST // 2
            assert {answer.status for answer in answers} == {200, 429}
            assert admin_get(admin(sidecar), "/readyz")[0] == 200
            counted = 'sidecar_store_fallbacks_total{policy="local",verdict="%s"}'
            assert metric(admin(sidecar), counted % "ALLOW") == BURST // 2
            assert metric(admin(sidecar), counted % "DENY_429") == BURST // 2
        server.start()
        eventually(
            lambda: [mark(configured.ask(target(sidecar))) for sidecar in sidecars] == [None, None],
            what="the store decides again",
        )
        assert [store_state(sidecar) for sidecar in sidecars] == ["connected", "connected"]
        assert sidecars[0].stop() == 0
        eventually_metric(admin(sidecars[1]), "sidecar_store_live_sidecars", 1)
    finally:
        for sidecar in sidecars:
            sidecar.stop()
        server.stop()


def test_policy__from_the_configuration_and_from_the_record(tmp_path: Path) -> None:
    """A registry that names no policy is answered by the configuration's; one that does, by its own."""
    server = RedisServer(tmp_path / "redis").start()
    configured = Configured(tmp_path, store=server.url, on_store_error="allow")
    sidecar = configured.serve()
    try:
        eventually(lambda: mark(configured.ask(target(sidecar))) is None, what="the store decides")
        server.kill()
        eventually(lambda: "nothing listens at" in store_state(sidecar), what="the store is missed")
        answer = configured.ask(target(sidecar))
        assert (answer.status, mark(answer)) == (200, "allow")
        configured.write_registry(on_store_error="local")
        eventually(lambda: mark(configured.ask(target(sidecar))) == "local", what="the record's policy holds")
        configured.write_registry(on_store_error="allow", status="suspended")
        eventually(
            lambda: configured.ask(target(sidecar)).reason == "integration_suspended",
            what="a suspension holds without the store, too",
        )
    finally:
        sidecar.stop()
        server.stop()

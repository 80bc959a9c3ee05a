"""Envoy's own rate-limit filter, with the sidecar as its service: what a client of the proxy sees."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from deploy.demo.calling import Answer, send
from deploy.demo.envoy import CONFIGS, Document, ingress_http, named, running_envoy
from deploy.demo.sidecar import ReservedPort, Sidecar
from deploy.demo.upstream import running_upstream
from tests.redis_servers import shared
from tests.unit.process.running import STORE_TIMEOUT_MS
from tests.waiting import PATIENCE_S, eventually

EXAMPLE = CONFIGS.parent / "example" / "rate_limits"
FREE_PLAN = 3


class LimitedApi:
    """An API behind Envoy with deploy/envoy/envoy-ratelimit.yaml, and the sidecar that it asks."""

    def __init__(self, parts: ExitStack, **settings: object) -> None:
        """Start the API, the sidecar and Envoy."""
        self.folder = Path(tempfile.mkdtemp(prefix="sidecar-e2e-"))
        parts.callback(shutil.rmtree, self.folder)
        shutil.copytree(EXAMPLE, self.folder / "rate_limits")
        port = ReservedPort()
        parts.callback(port.close)
        address = f"127.0.0.1:{port.number}"
        app_port = parts.enter_context(running_upstream())
        registry = self.folder / "registry.yaml"
        registry.write_text("integrations: []\n")
        self.sidecar = Sidecar(self.folder, address, registry, rate_limits="rate_limits", **settings)
        parts.callback(self.sidecar.stop)
        self.envoy = running_envoy(
            CONFIGS / "envoy-ratelimit.yaml", app_port, address, self.folder, _wait_long
        )
        parts.callback(self.envoy.stop)

    def get(self, user: str, plan: str = "free") -> Answer:
        """GET with these headers."""
        return send(self.envoy.port, "GET", "/v1/orders", [("x-plan", plan), ("x-user", user)])


def _wait_long(document: Document) -> None:
    filters = ingress_http(document)["http_filters"]
    named(filters, "envoy.filters.http.ratelimit")["typed_config"]["timeout"] = f"{PATIENCE_S:g}s"


@pytest.fixture(params=["grpcio", "redis"])
def api(request: pytest.FixtureRequest) -> Iterator[LimitedApi]:
    """The reference transport on the embedded store; the fast one on Redis."""
    settings: dict[str, object] = {"transport": request.param}
    if request.param == "redis":
        url = f"{shared().standalone.url}?prefix=envoy-{secrets.token_hex(4)}:"
        settings = {"store": url, "store_timeout_ms": STORE_TIMEOUT_MS}
    with ExitStack() as parts:
        yield LimitedApi(parts, **settings)


def test_envoy__limits_globally_through_us(api: LimitedApi) -> None:
    """
    A client gets its quota, headers that tell what is left, then 429; others and other plans go on.

    A changed file holds for the next requests, without a restart. The example fails closed: 503 once the
    sidecar is unavailable.
    """
    for number in range(FREE_PLAN):
        answer = api.get("ann")
        assert answer.status == 200
        assert answer.one("x-ratelimit-remaining") == str(FREE_PLAN - 1 - number)
        assert answer.one("x-ratelimit-limit").startswith(f'{FREE_PLAN}, 600;w=60;name="per-address"')
        assert answer.one("x-ratelimit-limit").endswith(f'{FREE_PLAN};w=3600;name="free-plan"')
        assert 0 < int(answer.one("x-ratelimit-reset")) <= 3_600
    refused = api.get("ann")
    assert refused.status == 429
    assert refused.one("x-envoy-ratelimited") == "true"
    assert refused.one("x-ratelimit-remaining") == "0"
    assert api.get("bob").status == 200
    assert api.get("ann", "gold").status == 200
    assert api.get("ann", "unlisted").one("x-ratelimit-limit").startswith("600, ")
    assert api.envoy.stat("cluster.app.ratelimit.over_limit") == 1
    assert api.envoy.stat("cluster.app.ratelimit.error") == 0
    file = api.folder / "rate_limits" / "shop.yaml"
    document = yaml.safe_load(file.read_text())
    document["descriptors"][1]["descriptors"][0]["rate_limit"]["requests_per_unit"] = 1
    draft = api.folder / "draft"
    draft.write_text(yaml.safe_dump(document))
    draft.replace(file)
    eventually(lambda: api.get("bob").status == 429, what="the new limit holds for what was used")
    api.sidecar.stop()
    assert api.get("cat").status == 503

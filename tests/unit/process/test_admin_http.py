"""What the admin listener answers, request by request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar.observe.build import BUILD, VERSION
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.process.admin_http import AdminApp
from sidecar.process.readiness import Readiness
from sidecar.transports.http1.work import OWN_LOOP
from tests.building import make_metrics
from tests.http_exchanges import ask


class AdminHttp:
    """An HTTP application, and what it is asked."""

    def __init__(self, runner: asyncio.Runner) -> None:
        """Two components, neither ready."""
        self.metrics: Metrics = make_metrics()
        self.readiness = Readiness(self.metrics, ("grpc", "registry"))
        self._runner = runner
        self._app = AdminApp(self.metrics, self.readiness, OWN_LOOP)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send one request; return status, headers and body."""
        pairs = tuple((name.encode(), value.encode()) for name, value in headers.items())
        answer = self._runner.run(ask(self._app.serve, path, method, pairs))
        return answer.status, answer.headers, answer.body


@pytest.fixture
def asked() -> Iterator[AdminHttp]:
    """An application to ask."""
    with asyncio.Runner() as runner:
        yield AdminHttp(runner)


def test_admin__metrics_in_the_text_format(asked: AdminHttp) -> None:
    """Every metric of the table, the process's own, and the build."""
    asked.metrics.add("sidecar_decisions_total", "ALLOW", "ok", by=3)
    status, headers, body = asked.ask("/metrics")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
    families = {family.name: family for family in parse_text(body.decode())}
    assert {spec.name.removesuffix("_total") for spec in TABLE.specs} <= set(families)
    assert {"process_cpu_seconds", "python_info", "python_gc_collections"} <= set(families)
    assert families["sidecar_build_info"].samples[0].labels == {"version": VERSION, "build": BUILD}
    allowed = [sample for sample in families["sidecar_decisions"].samples if sample.labels["reason"] == "ok"]
    assert [sample.value for sample in allowed] == [3.0]


def test_admin__metrics_in_openmetrics_when_asked(asked: AdminHttp) -> None:
    """Prometheus may negotiate OpenMetrics; it must be right to its last line."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    status, headers, body = asked.ask("/metrics", accept=accept)
    assert (status, headers["content-type"].split(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert "sidecar_decisions" in {family.name for family in parse_openmetrics(body.decode())}


def test_admin__alive_whatever_the_state(asked: AdminHttp) -> None:
    """Being alive is not being ready: nobody must restart a sidecar that starts or drains."""
    status, headers, body = asked.ask("/healthz")
    assert (status, headers["content-type"], json.loads(body)) == (
        200,
        "application/json",
        {"status": "alive"},
    )


def test_admin__ready_when_every_component_is(asked: AdminHttp) -> None:
    """Readiness names its components; one that is not ready makes it 503, and the gauge follows."""
    states = []
    for name, is_ready, state in (
        ("registry", True, "loaded"), ("grpc", True, "serving"), ("grpc", False, "draining"),
    ):  # fmt: skip
        states.append((asked.ask("/readyz")[0], asked.metrics.value("sidecar_ready")))
        asked.readiness.set(name, is_ready, state)
    status, _, body = asked.ask("/readyz")
    assert states == [(503, 0), (503, 0), (200, 1)]
    assert (status, json.loads(body)) == (
        503,
        {
            "status": "not ready",
            "components": {
                "grpc": {"is_ready": False, "state": "draining"},
                "registry": {"is_ready": True, "state": "loaded"},
            },
        },
    )


def test_admin__other_pages_are_reported(asked: AdminHttp) -> None:
    """A wrong path gets the right ones, as problem+json."""
    status, headers, body = asked.ask("/metric")
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert json.loads(body)["detail"] == "Pages of this listener: /metrics, /healthz, /readyz."


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_admin__only_reads(asked: AdminHttp, method: str) -> None:
    """Nothing here can be changed."""
    status, headers, _ = asked.ask("/healthz", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_admin__answers_are_not_cached(asked: AdminHttp) -> None:
    """No proxy between may keep an answer."""
    assert asked.ask("/readyz")[1]["cache-control"] == "no-store"

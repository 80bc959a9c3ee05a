"""Debian's promtool and Prometheus on the files of deploy/prometheus, and the queries of deploy/grafana."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from deploy.demo.programs import Program
from sidecar.cli.check_client import Asker
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.decisions import Reason
from sidecar.observe.metrics import Metrics
from sidecar.observe.shared import WorkerCounts
from sidecar.observe.table import TABLE, WORKER_GAUGE_RULES
from sidecar.process.supervisor.resources import WorkerHealth, WorkerUsage
from sidecar.process.supervisor.slot import Slot
from sidecar.services.ext_authz_client import check_request
from tests.building import make_decider
from tests.house.monitoring import ALERTS, RULES, UNIT_TESTS, dashboard_queries
from tests.house.source import ROOT, text_of
from tests.redis_servers import RedisServer, free_port
from tests.unit.process.running import Configured
from tests.unit.process.supervisor.playing import ManualTimers
from tests.waiting import eventually

CONFIG = "deploy/prometheus/prometheus.yml"
TIMEOUT_S = 60
SILENT = {"Access ends in", "Processor time", "Rate-limit service: over the limit"}
"""Panels with a query that finds nothing where there is no admin API, supervisor or rate-limit file."""
CALLER_ALERTS = {"SidecarKeyFlood", "SidecarIntegrationLimited"}
STORE_ALERTS = {
    "SidecarAvailabilityBurnsFast",
    "SidecarStoreBreakerOpen",
    "SidecarStoreFallback",
    "SidecarStoreUnreachable",
}
DENIED = {"rate_limited", "route_unknown", "unknown_credential", "key_flood"}


def promtool(*arguments: str, text: str | None = None) -> str:
    """What promtool prints when it succeeds; *text* is its standard input."""
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules__promtool_accepts_them() -> None:
    """The configuration and both rule files are valid, and no rule is given twice."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES, ALERTS)
    promtool("check", "config", CONFIG)


def test_alerts__their_unit_tests_pass() -> None:
    """Each alert is silent before its cause and fires after it, with its labels and annotations."""
    assert promtool("test", "rules", *UNIT_TESTS).count("SUCCESS") == len(UNIT_TESTS)


class Prometheus(Program):
    """A Prometheus with the project's configuration, which scrapes *target* every two seconds."""

    def __init__(self, folder: Path, target: str) -> None:
        """Start it; rules are evaluated every second instead of every 15 to 60."""
        self.port = free_port()
        for path in (CONFIG, RULES, ALERTS):
            text = text_of(path).replace("127.0.0.1:9193", target)
            text = re.sub(r"scrape_interval: \w+", "scrape_interval: 2s", text)
            text = re.sub(r"\b(evaluation_)?interval: \w+", r"\1interval: 1s", text)
            (folder / Path(path).name).write_text(text)
        listen = f"--web.listen-address=127.0.0.1:{self.port}"
        files = (f"--config.file={folder / Path(CONFIG).name}", f"--storage.tsdb.path={folder / 'data'}")
        super().__init__("prometheus", ["prometheus", *files, listen], folder)

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an API call that must succeed; nothing while Prometheus still starts."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            response = connection.getresponse()
            if response.status == 503:  # it still opens its database
                return {}
            answer = json.loads(response.read())
        except ConnectionError:
            return {}
        finally:
            connection.close()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, text: str) -> list[dict[str, Any]]:
        """The vector that the query *text* of the dashboard returns, for all instances."""
        text = (
            text.replace("$instance", ".*").replace("$integration", ".*").replace("$__rate_interval", "10s")
        )
        found: list[dict[str, Any]] = self.ask("query", query=text).get("result", [])
        return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may stop."""
    server = RedisServer(tmp_path / "redis", port=free_port()).start()
    yield server
    server.stop()


def load(target: str, configured: Configured) -> None:
    """Ask until requests are over the limit, without a route, and a flood of unknown keys."""
    unknown = generate_api_key().api_key
    asks = [(configured.key.api_key, "/v1/orders")] * 60
    asks += [(configured.key.api_key, "/elsewhere")] * 10 + [(unknown, "/v1/orders")] * 20
    with Asker(target) as asker:
        for key, path in asks:
            asker.ask(check_request("GET", path, {"x-api-key": key}, "127.0.0.1"))


def test_metrics__promtool_accepts_them() -> None:
    """Names, types and help texts of all metrics, those about integrations and workers included."""
    metrics = WorkerCounts(TABLE, WORKER_GAUGE_RULES)
    worker = make_decider(metrics=Metrics(TABLE, metrics.add_block().values))
    worker.refuse(Reason.SCOPE_MISSING, "")
    metrics.collect_along(WorkerUsage(lambda: [os.getpid()]))
    metrics.collect_along(WorkerHealth([Slot(0, ManualTimers(), metrics)]))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    promtool("check", "metrics", text=generate_latest(registry).decode())


def test_prometheus__answers_every_query_about_a_loaded_sidecar(tmp_path: Path, store: RedisServer) -> None:
    """Every panel gets data, a flood raises its alert, and so does a store that goes away; no rule fails."""
    configured = Configured(tmp_path, store=store.url, invalid_keys_per_minute=10, store_timeout_ms=1000)
    configured.write_registry(rate_limit_rpm=60, burst=20)
    with configured.serve() as sidecar:
        target = sidecar.event("serving")["grpc"][0]
        with Prometheus(tmp_path, sidecar.admin()) as prometheus:
            eventually(lambda: prometheus.query("sidecar_key_floods_total"), what="the first scrape")

            def load_raises(expected: set[str]) -> bool:
                load(target, configured)
                return expected <= raised(prometheus)

            eventually(
                lambda: load_raises(CALLER_ALERTS), what="the alerts of a flood and a limited integration"
            )
            eventually(lambda: silent_panels(prometheus) == SILENT, what="all other panels have data")
            denied = prometheus.query('sum by (reason) (sidecar_decisions_total{verdict!="ALLOW"}) > 0')
            assert {row["metric"]["reason"] for row in denied} >= DENIED
            assert raised(prometheus).isdisjoint(STORE_ALERTS)
            store.stop()
            eventually(lambda: load_raises(STORE_ALERTS), what="the alerts of the store")
            groups = eventually(lambda: evaluated(prometheus), what="each rule was evaluated")
            rules = [rule for group in groups for rule in group["rules"]]
            assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []


def raised(prometheus: Prometheus) -> set[str]:
    """The alerts that fire, or will once their time is over."""
    return {row["metric"]["alertname"] for row in prometheus.query("ALERTS")}


def silent_panels(prometheus: Prometheus) -> set[str]:
    """The panels with a query that finds nothing."""
    return {query.place for query in dashboard_queries() if not prometheus.query(query.text)}


def evaluated(prometheus: Prometheus) -> list[dict[str, Any]]:
    """The groups of rules, once each of their rules was evaluated."""
    groups: list[dict[str, Any]] = prometheus.ask("rules").get("groups", [])
    is_done = groups and all(rule["health"] != "unknown" for group in groups for rule in group["rules"])
    return groups if is_done else []

"""Debian's promtool and Prometheus on the files of deploy/prometheus, and the queries of deploy/grafana."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from deploy.demo.prometheus import Prometheus
from sidecar.domain.decisions import Reason
from sidecar.observe.metrics import Metrics
from sidecar.observe.shared import WorkerCounts
from sidecar.observe.table import TABLE, WORKER_GAUGE_RULES
from sidecar.process.supervisor.resources import WorkerHealth, WorkerUsage
from sidecar.process.supervisor.slot import Slot
from tests.building import make_decider
from tests.e2e.monitored import Monitored, rules_of
from tests.house.monitoring import ALERTS, RULES, UNIT_TESTS, alerts, dashboard_queries
from tests.house.source import ROOT
from tests.unit.process.supervisor.playing import ManualTimers
from tests.waiting import eventually

CONFIG = "deploy/prometheus/prometheus.yml"
TIMEOUT_S = 240
SILENT: set[str] = set()
"""Panels with a query that finds nothing about sound sidecars."""
FROM_THE_START = {
    "SidecarAdminAccessEnds",
    "SidecarAdminTokenExpires",
    "SidecarCertificateExpires",
    "SidecarCredentialsExpire",
    "SidecarDown",
    "SidecarLastAdministrator",
}
FROM_LOAD = {
    "SidecarIntegrationLimited",
    "SidecarIntegrationNearLimit",
    "SidecarKeyFlood",
    "SidecarRouteMisconfigured",
}
FROM_SLOWNESS = {"SidecarLatencyBurnsFast", "SidecarLatencyBurnsSlowly"}
"""These may fire before, where other programs keep the processors busy."""
FROM_REDIS = {"SidecarStoreMayEvict", "SidecarStoreRefusesCommands", "SidecarStoreFallback"}
FROM_ABSENT_REDIS = {"SidecarStoreBreakerOpen", "SidecarStoreUnreachable", "SidecarRateLimitUnavailable"}
NOT_HERE = {
    "SidecarDenialsRising",  # compares with six hours
    "SidecarNoAdministrator",  # needs the last token to expire
    "SidecarStoreClockDiffers",  # needs a machine with another clock
    "SidecarStorePartitionsUnserved",  # needs a Cluster
}
"""Alerts that only promtool makes fire."""


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


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="sidecar-prometheus-") as path:
        yield Path(path)


def test_prometheus__sees_everything_that_goes_wrong(folder: Path) -> None:
    """
    Each alert fires after its cause, in a Prometheus that scrapes three real sidecars, and none before.

    Before anything is broken every panel of the dashboard has data; no rule fails.
    """
    with ExitStack() as parts:
        scene = Monitored(folder, parts)
        prometheus, busy, workers, administered = (
            scene.prometheus, scene.busy, scene.workers, scene.administered
        )  # fmt: skip

        scene.await_alerts(FROM_THE_START)
        scene.await_alerts(FROM_LOAD, busy.load)
        busy.limit_rates()
        administered.ask(1)
        eventually(lambda: silent_panels(prometheus) == SILENT, what="all other panels have data")
        assert scene.fired() <= FROM_THE_START | FROM_LOAD | FROM_SLOWNESS

        scene.type_runbook()
        scene.await_alerts(FROM_SLOWNESS, busy.be_slow)
        administered.redis.freeze()
        scene.await_alerts({"SidecarOverAdmitted"}, lambda: administered.ask(30))
        scene.await_alerts({"SidecarWorkerBlocked"}, lambda: workers.block_one(prometheus))
        workers.kill_some(prometheus)
        workers.break_files()
        workers.forbid_writing()
        busy.run_out_of_descriptors()
        busy.misconfigure_redis()
        scene.await_alerts(FROM_REDIS, busy.load)
        scene.await_alerts({"SidecarAdminAttemptsRefused"}, administered.guess_tokens)
        scene.await_alerts({"SidecarRegistryStale"})
        administered.redis.thaw()
        administered.redis.client.flushall()
        busy.redis.kill()
        busy.break_files()
        scene.await_alerts(FROM_ABSENT_REDIS, busy.load_both)
        scene.await_alerts({alert["alert"] for alert in alerts()} - NOT_HERE)
        assert [rule["lastError"] for rule in rules_of(prometheus) if rule.get("lastError")] == []


def silent_panels(prometheus: Prometheus) -> set[str]:
    """The panels with a query that finds nothing."""
    return {query.place for query in dashboard_queries() if not prometheus.query(query.text)}

"""Debian's promtool and Prometheus on the files of deploy/prometheus."""

from __future__ import annotations

import subprocess

from tests.house.monitoring import ALERTS, RULES, UNIT_TESTS
from tests.house.source import ROOT

CONFIG = "deploy/prometheus/prometheus.yml"
TIMEOUT_S = 60


def promtool(*arguments: str) -> str:
    """What promtool prints when it succeeds."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
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

"""`python -m loadtest`: a real sidecar under a short load, by each protocol, and the reports of a run."""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic_ns, time
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.harness.drivers import Job, carry_out
from loadtest.harness.oracle import admissions, judge
from loadtest.harness.results import Collected
from loadtest.harness.run import rules_of
from loadtest.harness.scenario import Scenario
from loadtest.harness.stage import staged
from loadtest.harness.suspensions import Suspensions

SHORT = {"rate_per_s": 300, "duration_s": 1.0, "warm_up_s": 0}
MIX = {"valid": 0.6, "unknown": 0.1, "suspended": 0.1, "wrong_scope": 0.1, "foreign_address": 0.1}
TIGHT = {"rpm": 300, "burst": 5}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "native": {"connections": {"tls": True}},
    "forward_auth": {"connections": {"transport": "unix"}},
    "http": {
        "traffic": {"integrations": 5, "mix": {"valid": 0.8, "unknown": 0.1, "wrong_scope": 0.1}},
        "sidecar": {"proxy": "nginx"},
    },
    "rls": {"traffic": {"integrations": 5}, "limits": {"rpm": 20, "algorithm": "fixed_window"}},
}
SHORT_LOAD = [f"--set=load.{key}={value}" for key, value in SHORT.items()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_load_test__every_answer_of_a_real_sidecar_is_right(protocol: str) -> None:
    """By each protocol, with TLS, on a Unix socket, through nginx; some ask for more than their limit."""
    sections = {"traffic": {"integrations": 5, "mix": MIX}, "limits": TIGHT, **PROTOCOLS[protocol]}
    scenario = Scenario(protocol=protocol, load=SHORT, **sections)
    collected = Collected(0.0)
    with staged(scenario) as stage:
        tally = carry_out(
            Job(scenario, stage.keys, stage.targets, rules_of(scenario), 0, 1, ()),
            collected.add,
            monotonic_ns,
        )
    admitted = admissions(scenario, tally, time() - monotonic_ns() / 1e9)
    verdict = judge(scenario, tally, collected.totals, admitted, Suspensions(), [])
    assert verdict.faults == []
    assert {status for _, status in collected.totals} >= {200, 429}
    assert len(admitted) == 5


def test_load_test__a_run_leaves_a_result_and_a_page_and_two_can_be_compared(tmp_path: Path) -> None:
    """The whole command: two driver processes, a Redis that pauses, and a page that loads nothing."""
    events = '[{at_s=0.3, do="pause-redis"}, {at_s=0.6, do="resume-redis"}]'
    command = ["run", "over-limit", *SHORT_LOAD, "--set=connections.processes=2", f"--set=events={events}"]
    ran = CliRunner().invoke(app, [*command, f"--out={tmp_path}"])
    assert ran.exit_code == 0, ran.output
    result = json.loads((tmp_path / "over-limit.json").read_text())
    assert result["verdict"]["is_right"]
    assert result["calls"] == pytest.approx(300, abs=90)
    assert set(result["usage"]) == {"sidecar", "redis"}
    assert result["answers"]["valid"]["503"] > 0
    page = (tmp_path / "over-limit.html").read_text()
    assert page.count("<svg") >= 3
    assert not [text for text in ("<script", "<link", "src=", "@import", "url(http") if text in page]
    path = str(tmp_path / "over-limit.json")
    compared = CliRunner().invoke(app, ["compare", path, path, f"--out={tmp_path}"])
    assert compared.exit_code == 0, compared.output
    assert "1.00 ×" in compared.output


def test_load_test__without_a_server_there_is_no_run(tmp_path: Path) -> None:
    """Exit code 2, and the message says what to do."""
    keys = tmp_path / "keys"
    keys.write_text("sck_a\n")
    target = ["--target=unix:/nowhere.sock", f"--keys={keys}"]
    for command, reported in (
        (["run", "nothing"], "built in are"),
        (
            ["run", "steady", "--set=traffic.mix={valid=1}", *target],
            "cannot connect to unix:/nowhere.sock: No such file",
        ),
        (["compare", str(keys), str(keys)], "keys"),
        (["peers", "--peer=other=/bin/true"], "it must be NAME=PATH"),
    ):
        ran = CliRunner().invoke(app, command)
        assert (ran.exit_code, reported in ran.output) == (2, True), ran.output

"""Rules and dashboard name metrics that exist; each alert has a unit test and a section of the runbook."""

from __future__ import annotations

import html
import re
import shlex
from functools import cache
from typing import Any

import pytest
import typer.main
import yaml

from sidecar.cli.root import app
from tests.house.monitoring import (
    RUNBOOK,
    UNIT_TESTS,
    Query,
    alerts,
    dashboard,
    dashboard_queries,
    known_series,
    rule_queries,
    runbook_commands,
)
from tests.house.source import python_sources, report, text_of

PICTURE = "docs/operate/dashboard.svg"
ROWS = ["Is it healthy", "Who is limited and why", "What does the store cost", "Administration"]
VARIABLES = ["datasource", "instance", "integration"]
PARTS = ("**Symptom.**", "**Cause.**", "**What to do.**")


def sections() -> dict[str, str]:
    """The text of each section of the runbook, by heading."""
    _, *parts = re.split(r"^## ", text_of(RUNBOOK), flags=re.MULTILINE)
    return {heading: text for heading, _, text in (part.partition("\n") for part in parts)}


@cache
def root_command() -> Any:
    """The command `sidecar`; Typer takes its time to build it."""
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Parse *words* as arguments of `sidecar`, without running the command; raise if they are wrong."""
    command: Any = root_command()
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context("sidecar", words)


def test_queries__name_metrics_and_labels_that_exist() -> None:
    """Every query of rules and dashboard names metrics, labels and label values of the table."""
    known = known_series()
    queries = [*rule_queries(), *dashboard_queries()]
    report([fault for query in queries for fault in query.faults(known)])


def test_dashboard__has_its_rows_and_follows_its_variables() -> None:
    """It has four rows; each panel uses the chosen data source, and each query the chosen instances."""
    panels = dashboard()["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == VARIABLES
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}", panel["title"]
    report(
        [
            f"{query.place}: {query.text} ignores $instance"
            for query in dashboard_queries()
            if query.text.count('instance=~"$instance"') < len(query.metrics) and "sidecar:" not in query.text
        ]
    )


def test_picture__shows_every_panel() -> None:
    """`make dashboard-picture` was run after the last change of the panels."""
    texts = {html.unescape(text) for text in re.findall(r">([^<]+)</text>", text_of(PICTURE))}
    assert {panel["title"] for panel in dashboard()["panels"]} <= texts


@pytest.mark.parametrize(
    "text",
    [
        "rate(sidecar_decision_total[5m])",
        'sidecar_decisions_total{outcome="ok"}',
        'sidecar_decisions_total{reason=~"ok|okay"}',
        'sidecar_decision_duration_seconds_bucket{le="0.02"}',
        "sum by (policy) (sidecar_decisions_total)",
        "time()",
    ],
)
def test_queries__a_wrong_name_is_found(text: str) -> None:
    """The check itself finds a wrong metric, label, label value, bucket and grouping."""
    assert Query("example", text).faults(known_series())


def test_alerts__each_has_its_section_of_the_runbook() -> None:
    """The runbook has the alerts' names as headings, in their order, each with symptom, cause and remedy."""
    names = [alert["alert"] for alert in alerts()]
    assert list(sections()) == names
    for alert in alerts():
        name = alert["alert"]
        assert alert["annotations"]["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert [part for part in PARTS if part not in sections()[name]] == [], name


def test_alerts__each_is_quiet_once_and_fires_once_in_a_unit_test() -> None:
    """promtool's unit tests look at each alert before and after its cause."""
    looks: dict[str, list[bool]] = {}
    for path in UNIT_TESTS:
        for case in yaml.safe_load(text_of(path))["tests"]:
            for look in case["alert_rule_test"]:
                looks.setdefault(look["alertname"], []).append("exp_alerts" in look)
    assert {name: sorted(fired) for name, fired in looks.items()} == {
        alert["alert"]: [False, True] for alert in alerts()
    }


def test_runbook__its_commands_exist() -> None:
    """The command line accepts every `sidecar` command of the runbook."""
    typed = [line for line in runbook_commands() if line.startswith("sidecar ")]
    assert typed
    for line in typed:
        parse(shlex.split(line)[1:])


def test_runbook__the_log_lines_that_it_looks_for_exist() -> None:
    """What `journalctl --grep` looks for is a text of the program, or of the kernel."""
    texts = [source.text for source in python_sources() if source.path.startswith("sidecar/")]
    typed = [line for line in runbook_commands() if line.startswith("journalctl --unit") and "--grep" in line]
    assert typed
    report([line for line in typed if not any(shlex.split(line)[4] in text for text in texts)])

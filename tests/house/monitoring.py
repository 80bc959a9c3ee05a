"""The rules, alerts and dashboard of deploy/, and what a PromQL query names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from sidecar.observe.metrics import MetricKind
from sidecar.observe.table import TABLE
from tests.house.source import project_files, text_of

RULES = "deploy/prometheus/sidecar.rules.yml"
ALERTS = "deploy/prometheus/sidecar.alerts.yml"
DASHBOARD = "deploy/grafana/sidecar.json"
RUNBOOK = "docs/operate/runbook.md"
UNIT_TESTS = tuple(path for path in project_files() if path.startswith("deploy/prometheus/tests/"))
TARGET_LABELS = frozenset({"job", "instance"})
"""The labels that Prometheus itself adds to every scraped series."""

_PROCESS_METRICS = ("process_cpu_seconds_total", "sidecar_workers_cpu_seconds_total")
_WORKER_METRICS = (
    "sidecar_worker_ready",
    "sidecar_worker_silent_seconds",
    "sidecar_worker_loop_lag_seconds_sum",
    "sidecar_worker_loop_lag_seconds_count",
)
"""Metrics that rules and dashboard read and that are not in the table: the collectors of the supervisor have
them, those of single workers with the label `worker`."""
_KEYWORDS = frozenset({"and", "or", "unless", "offset", "bool", "by", "on", "group_left"})
_GROUPING = re.compile(r"\b(?:by|on|group_left) *\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_][\w:]*)\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+) *(?:=~|!~|!=|=) *\"([^\"]*)\"")
_WORD = re.compile(r"(?<![\w.:$])[a-zA-Z_][\w:]*(?! *\(|[\w:])")

Labels = dict[str, frozenset[str]]
"""The possible values of each label; none = any value."""


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the place where it is."""

    place: str
    text: str

    @property
    def metrics(self) -> set[str]:
        """The names of all series that it reads."""
        bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", self.text)
        return set(_WORD.findall(_GROUPING.sub(" ", bare))) - _KEYWORDS

    @property
    def grouped_by(self) -> set[str]:
        """The labels by which it groups or joins."""
        return {label for group in _GROUPING.findall(self.text) for label in re.findall(r"\w+", group)}

    def faults(self, known: dict[str, Labels]) -> list[str]:
        """What it names that *known* series do not have."""
        unknown = sorted(self.metrics - set(known))
        if unknown or not self.metrics:
            return [f"{self.place}: no such metric: {', '.join(unknown) or 'none at all'}"]
        found = []
        for metric, matchers in _SELECTOR.findall(self.text):
            for label, pattern in _MATCHER.findall(matchers):
                values = known[metric].get(label)
                if values is None:
                    found.append(f"{self.place}: {metric} has no label {label}")
                elif values and not set(pattern.split("|")) <= values:
                    found.append(f"{self.place}: {label} of {metric} is never {pattern}")
        labels = {label for metric in self.metrics for label in known[metric]}
        return found + [f"{self.place}: no label {label}" for label in sorted(self.grouped_by - labels)]


def groups(path: str) -> list[dict[str, Any]]:
    """The rule groups of the file at *path*."""
    listed: list[dict[str, Any]] = yaml.safe_load(text_of(path))["groups"]
    return listed


@cache
def alerts() -> tuple[dict[str, Any], ...]:
    """All alert rules, in the order of the file."""
    return tuple(rule for group in groups(ALERTS) for rule in group["rules"])


def runbook_commands() -> list[str]:
    """Every line of the runbook that a reader types."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text_of(RUNBOOK), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def rule_queries() -> list[Query]:
    """The expressions of all recording and alert rules."""
    rules = [rule for path in (RULES, ALERTS) for group in groups(path) for rule in group["rules"]]
    return [Query(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules]


@cache
def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    parsed: dict[str, Any] = json.loads(text_of(DASHBOARD))
    return parsed


def dashboard_queries() -> list[Query]:
    """The queries of all panels, in their order."""
    return [
        Query(panel["title"], target["expr"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def known_series() -> dict[str, Labels]:
    """Every series that Prometheus has of a sidecar: those of the table, the recorded ones, and its own."""
    target: Labels = dict.fromkeys(TARGET_LABELS, frozenset[str]())
    known: dict[str, Labels] = dict.fromkeys(("up", *_PROCESS_METRICS), target)
    known |= {name: {**target, "worker": frozenset()} for name in _WORKER_METRICS}
    known["ALERTS"] = {**target, **dict.fromkeys(("alertname", "alertstate"), frozenset[str]())}
    for spec in TABLE.specs:
        labels = {**target, **{name: frozenset(values) for name, values in spec.labels}}
        labels.update(dict.fromkeys(spec.row_labels, frozenset()))
        if spec.kind is MetricKind.HISTOGRAM:
            bounds = frozenset(str(bound / 1e9) for bound in spec.buckets_ns)
            known |= {f"{spec.name}_bucket": {**labels, "le": bounds}}
            known |= {f"{spec.name}_{end}": labels for end in ("sum", "count")}
        else:
            known[spec.name] = labels
    for query in rule_queries():
        if query.place.startswith("sidecar:"):
            known[query.place] = dict.fromkeys(query.grouped_by, frozenset())
    return known

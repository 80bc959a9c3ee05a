"""`sidecar activity`: what a person reads at night, and what a script reads."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from sidecar.cli.activity import print_activity

from .terminal import COLUMNS, TerminalStream

SEEN = {"first_seen": "2025-11-25T03:00:00.000000Z", "last_seen": "2025-11-25T03:59:00.000000Z"}
NETWORK = {"key": "203.0.113.0/24", "requests": 60, "refused": 12, **SEEN}
SPAN = {
    "sidecar": "host-b", "from": SEEN["first_seen"], "to": SEEN["last_seen"], "worker": None,
    "allowed": 15, "refused": None, "cause": "disk",
}  # fmt: skip


def found(**values: Any) -> dict[str, Any]:
    """An answer of the API; *values* replace fields."""
    return {
        "integration_id": "acme-erp",
        "since": "2025-11-24T16:00:00.000000Z",
        "until": "2025-11-25T16:00:00.000000Z",
        "log_begins_at": "2025-10-20T08:00:00.000000Z",
        "requests": 1_234,
        "refused": 12,
        "findings": [
            {
                "rule": "new_networks",
                "message": "1 network not seen before\x1b[2J",
                "figures": {"count": 1},
                "next_step": "rotate the API keys",
            }
        ],
        "not_checked": [{"rule": "volume", "message": "the rule needs 3 weeks"}],
        "working_hours": {"hours": "mon-fri 08-18", "time_zone": "UTC", "source": "learned"},
        "reasons": [{"reason": "ok", "requests": 1_222, "baseline_requests": 840}],
        "networks": [NETWORK],
        "scopes": [
            {"scope": "crm:read", "is_granted": True, "requests": 0, "refused": 0, "last_used_at": None}
        ],
        "credentials": [NETWORK | {"key": "K3nQ7xT0bW"}],
        "routes": [NETWORK | {"key": "GET /orders/{id}"}],
        "missing": [SPAN],
        "missing_before": [],
        **values,
    }


def test_piped__each_line_begins_with_the_name_of_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A script takes the lines that it needs; control characters reach nobody."""
    print_activity(found())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "acme-erp: 1,234 requests, 12 refused",
        "from 2025-11-24 16:00:00Z to 2025-11-25 16:00:00Z",
        "working hours: mon-fri 08-18 UTC (learned)",
    ]
    assert [line.split("\t") for line in lines[3:]] == [
        [
            "rows missing", "15 allowed in the window (disk)", "2025-11-25 03:00:00Z", "2025-11-25 03:59:00Z",
            "host-b",
        ],
        ["stands out", "new_networks", "1 network not seen before\ufffd[2J", "rotate the API keys"],
        ["not checked", "volume", "the rule needs 3 weeks"],
        ["reason", "ok", "1222", "840"],
        ["network", "203.0.113.0/24", "60", "12", "2025-11-25 03:00Z", "2025-11-25 03:59Z"],
        ["route", "GET /orders/{id}", "60", "12", "2025-11-25 03:00Z", "2025-11-25 03:59Z"],
        ["credential", "K3nQ7xT0bW", "60", "12", "2025-11-25 03:00Z", "2025-11-25 03:59Z"],
        ["scope", "crm:read", "yes", "0", "0", "not in 90 days"],
    ]  # fmt: skip


def test_terminal__what_matters_comes_first_and_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing rows, then findings with the next step, then the counts, within the width of the terminal."""
    screen = TerminalStream()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("TERM", "dumb")  # no styles
    print_activity(found())
    shown = screen.getvalue()
    assert max(map(len, shown.splitlines())) <= COLUMNS
    places = [
        shown.index(text)
        for text in (
            "1,234 requests", "15 allowed", "new networks", "→ rotate the API keys", "the rule needs",
            "4 weeks before", "203.0.113.0/24", "GET /orders/{id}", "K3nQ7xT0bW", "not in 90 days",
        )
    ]  # fmt: skip
    assert places == sorted(places)


def test_terminal__nothing_stands_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A quiet answer says so, and an unknown number of missing rows is no zero."""
    print_activity(found(findings=[], working_hours=None, missing=[SPAN | {"allowed": None}]))
    lines = capsys.readouterr().out.splitlines()
    assert "nothing stands out" in lines
    assert "an unknown number in the window (disk)" in lines[2]

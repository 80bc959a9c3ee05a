"""What stands out in an integration's requests, by REST over real files of a decision log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.domain.activity import Rule
from sidecar.domain.decision_rows import DecisionRow
from sidecar.services.admin.activity import RuleWord
from sidecar.services.admin.api import build_api
from sidecar.services.admin.review import ScopeUses, review_view
from sidecar.stores.decisions.missing import MissingSpan, add_missing
from tests.administration import LIFECYCLE, active
from tests.decision_log import SECOND_US, START_US, decision_row, write_segment
from tests.unit.services.admin.admin_api import AdminApi

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
DAY_US = DAY_S * SECOND_US
ACTIVITY = "/v1/integrations/acme/activity"


def usual_rows() -> list[DecisionRow]:
    """Three requests in each hour from 08 to 18 of every day of the 5 weeks before `START_US`."""
    seconds = [
        day * DAY_S + hour * HOUR_S + 60 * n
        for day in range(-35, 1)
        for hour in range(-8, 2)  # START_US is 16:00
        for n in range(3)
    ]
    return [decision_row(second, f"u{second}") for second in seconds if second < 0]


def odd_rows() -> list[DecisionRow]:
    """Requests of the next day: at 03:00 from a new network, for a scope that is not granted, and a flood."""
    at_three_s = 11 * HOUR_S
    refused = {"verdict": "DENY_403", "reason": "scope_missing", "scope": "crm:read"}
    return [
        *(decision_row(at_three_s + n, f"n{n}", client_address=f"203.0.113.{n}") for n in range(60)),
        *(decision_row(at_three_s + 60 + n, f"s{n}", route="/people", **refused) for n in range(12)),
        *(decision_row(16 * HOUR_S + n, f"d{n}") for n in range(30)),
        decision_row(1, "k", integration="", client_address="203.0.113.99", reason="key_flood"),
    ]


@pytest.fixture
def logged(api: AdminApi) -> AdminApi:
    """An API whose log has 5 usual weeks and an odd day, at the end of that day."""
    folder = api.context.require_decision_log().reader.folder
    write_segment(folder / "host-a", 1, usual_rows())
    write_segment(folder / "host-b", 1, odd_rows())
    api.create(scopes=["orders:read"])
    api.clock.now_us = START_US + DAY_US
    return api


def found(api: AdminApi, query: str = "", who: str = "olli") -> dict[str, Any]:
    """The activity of acme; its creation today must not hide the weeks before."""
    answer: dict[str, Any] = api.get(f"{ACTIVITY}?{query}", who)
    return answer


def figures(answer: dict[str, Any]) -> dict[str, Any]:
    """The figures of each finding, by rule."""
    return {finding["rule"]: finding["figures"] for finding in answer["findings"]}


def test_rules__are_those_of_the_domain() -> None:
    """The schema of the API names every rule."""
    assert list(RuleWord.__args__) == [rule.value for rule in Rule]


def test_activity__says_what_stands_out(logged: AdminApi) -> None:
    """One odd day after five usual weeks: each finding has its figures, with times."""
    answer = found(logged)
    assert (answer["since"], answer["until"]) == (
        "2025-11-24T16:00:00.000000Z",
        "2025-11-25T16:00:00.000000Z",
    )
    assert (answer["requests"], answer["refused"]) == (102, 12)
    stands_out = figures(answer)
    assert set(stands_out) == {
        "volume", "peak_hours", "outside_working_hours", "new_networks", "new_addresses",
        "scope_not_granted", "refusals", "invalid_keys",
    }  # fmt: skip
    assert (stands_out["volume"]["requests"], stands_out["volume"]["weeks"]) == (102, [30] * 4)
    assert stands_out["peak_hours"]["hours"][0]["hour"] == "2025-11-25T03:00:00.000000Z"
    assert stands_out["outside_working_hours"]["working_hours"] == "mon-sun 08-18"
    assert stands_out["outside_working_hours"]["requests"] == 72
    (network,) = stands_out["new_networks"]["networks"]
    assert (network["key"], network["requests"]) == ("203.0.113.0/24", 60)
    assert network["first_seen"] == "2025-11-25T03:00:00.000000Z"
    assert stands_out["new_addresses"]["count"] == 60
    assert stands_out["new_addresses"]["rows_since"] == "2025-10-25T16:00:00.000000Z"
    assert stands_out["scope_not_granted"]["scope"] == "crm:read"
    assert stands_out["refusals"]["reason"] == "scope_missing"
    assert stands_out["invalid_keys"]["refused_with_key_flood"] == 1


def test_activity__shows_the_counts_behind_it(logged: AdminApi) -> None:
    """The busiest networks and routes, each scope and key, reasons beside those of the weeks before."""
    answer = found(logged)
    assert [entry["key"] for entry in answer["networks"]] == ["203.0.113.0/24", "192.0.2.0/24"]
    assert answer["reasons"][0] == {"reason": "ok", "requests": 90, "baseline_requests": 840}
    assert [(route["key"], route["requests"]) for route in answer["routes"]] == [
        ("GET /orders/{id}", 90),
        ("GET /people", 12),
    ]
    assert [
        (s["scope"], s["is_granted"], s["refused"], s["last_used_at"] is None) for s in answer["scopes"]
    ] == [("crm:read", False, 12, True), ("orders:read", True, 0, False)]
    assert [entry["key"] for entry in answer["credentials"]] == ["key1"]
    assert (answer["missing"], answer["missing_before"]) == ([], [])


def test_activity__missing_rows_are_reported(logged: AdminApi) -> None:
    """By sidecar and cause: those of the window, and those of the weeks with which it is compared."""
    folder = logged.context.require_decision_log().reader.folder
    spans = [
        MissingSpan(START_US + n * SECOND_US, START_US + (n + 1) * SECOND_US, n, 5, 1, "disk")
        for n in range(3)
    ]
    old = MissingSpan(START_US - DAY_US, START_US - DAY_US + 1, -1, -1, -1, "writer_ended")
    older = MissingSpan(START_US - 90 * DAY_US, START_US - 89 * DAY_US, -1, 9, 9, "disk")
    add_missing(folder / "host-b", [*spans, old, older])
    answer = found(logged)
    (missing,) = answer["missing"]
    assert (missing["sidecar"], missing["allowed"], missing["refused"]) == ("host-b", 15, 3)
    assert (missing["from"], missing["to"]) == ("2025-11-24T16:00:00.000000Z", "2025-11-24T16:00:03.000000Z")
    (before,) = answer["missing_before"]
    assert (before["cause"], before["allowed"]) == ("writer_ended", None)


def test_activity__the_window_is_asked_for(logged: AdminApi) -> None:
    """It ends at the time requested, begins at a full hour, and may be short."""
    answer = found(logged, "since=90m&until=2025-11-25T04:30:00Z")
    assert answer["since"] == "2025-11-25T03:00:00.000000Z"
    assert answer["requests"] == 72
    assert figures(answer)["volume"]["weeks"] == [0] * 4


def test_activity__working_hours_are_set(logged: AdminApi) -> None:
    """In a time zone: 03:00 UTC is 04:00 in Berlin."""
    answer = found(logged, "hours=04-19&days=mon-fri&time_zone=Europe/Berlin")
    assert answer["working_hours"] == {
        "hours": "mon-fri 04-19", "time_zone": "Europe/Berlin", "source": "set"
    }  # fmt: skip
    assert "outside_working_hours" not in figures(answer)
    assert (
        figures(found(logged, "hours=09-19&time_zone=Europe/Berlin"))["outside_working_hours"]["requests"]
        == 102 - 30
    )


def test_activity__little_history_is_said(logged: AdminApi) -> None:
    """Another integration has no weeks to compare with."""
    logged.create("young", scopes=["orders:read"])
    answer = logged.get("/v1/integrations/young/activity", "audrey")
    assert (answer["requests"], answer["findings"]) == (0, [])
    assert {entry["rule"] for entry in answer["not_checked"]} == {
        "volume", "outside_working_hours", "new_networks", "new_addresses", "unused_scope"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("since=59m", "since"),
        ("since=32d", "since"),
        ("since=tomorrow", "since"),
        ("hours=8:30-17", "hours"),
        ("days=monday", "hours"),
        ("time_zone=Mars/Olympus", "time_zone"),
        ("time_zone=../etc/passwd", "time_zone"),
    ],
)
def test_activity__refuses_what_it_cannot_read(logged: AdminApi, query: str, field: str) -> None:
    """The error names the parameter and the form."""
    answer = logged.refused(422, "invalid_value", logged.call("GET", f"{ACTIVITY}?{query}"))
    assert answer["problems"][0]["field"] == field
    assert answer["problems"][0]["remedy"]


def test_activity__needs_a_decision_log_and_an_integration(logged: AdminApi) -> None:
    """Each error says what is missing."""
    logged.refused(404, "integration_unknown", logged.call("GET", "/v1/integrations/none/activity"))
    logged.app = build_api(replace(logged.context, decision_log=None))
    logged.refused(404, "decision_log_off", logged.call("GET", ACTIVITY))


def test_review__last_use_of_scopes(api: AdminApi) -> None:
    """From the decision log; a scope that was refused as not granted was not used."""
    api.create(scopes=["orders:read", "crm:read"])
    folder = api.context.require_decision_log().reader.folder
    rows = [decision_row(1, "1", scope="crm:read", reason="scope_missing"), decision_row(2, "2")]
    write_segment(folder / "host-a", 1, rows)
    api.clock.now_us = START_US + DAY_US
    page = api.get("/v1/review", "audrey")
    assert page["scope_uses_since"] == "2025-11-24T16:00:01.000000Z"
    scopes = page["items"][0]["scopes"]
    assert [scope["last_used_at"] for scope in scopes] == [None, "2025-11-24T16:00:02.000000Z"]


@pytest.mark.parametrize(
    ("log_days", "record_days", "is_flagged"), [(90, 90, True), (89, 90, False), (90, 89, False)]
)
def test_review__scopes_that_were_not_used(log_days: int, record_days: int, is_flagged: bool) -> None:
    """Flagged when log and integration are 90 days old, with the command that removes the scope."""
    record = active(scopes=("crm:read", "orders:read"))
    now_us = record.created_at_us + record_days * DAY_US
    uses = ScopeUses(now_us - log_days * DAY_US, {record.id: {"orders:read": now_us}})
    flags = review_view(record, {}, LIFECYCLE.catalogue, now_us, uses)["flags"]
    commands = [flag["message"].split(": ")[1] for flag in flags if flag["code"] == "scope_unused"]
    assert commands == (["sidecar scopes remove acme crm:read"] if is_flagged else [])


def test_review__goes_on_without_the_log(api: AdminApi) -> None:
    """A log that cannot be read is said; without one nothing is known about scopes."""
    api.create()
    api.context.require_decision_log().reader.folder.rmdir()
    page = api.get("/v1/review", "audrey")
    assert page["scope_uses_problem"]
    assert page["items"][0]["scopes"][0]["last_used_at"] is None
    api.app = build_api(replace(api.context, decision_log=None))
    page = api.get("/v1/review", "audrey")
    assert (page["scope_uses_since"], page["scope_uses_problem"]) == (None, None)

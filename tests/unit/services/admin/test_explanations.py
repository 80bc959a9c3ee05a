"""A logged decision explained by the record that decided, and by the record now."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decision_log import START_US, decision_row, write_segment
from tests.unit.services.admin.admin_api import AdminApi

PASSED, REFUSED, FOREIGN, NOBODY = (f"{number:022}" for number in range(1, 5))
ACME = "/v1/integrations/acme"


@pytest.fixture
def logged(api: AdminApi) -> AdminApi:
    """An integration whose limit and allowlist were changed after three decisions."""
    key = api.create(rate_limit_rpm=60, burst=2, scopes=["orders:read"])["credential_id"]
    folder = api.context.require_decision_log().reader.folder
    usual: dict[str, Any] = {
        "credential": key, "path": "/v1/orders/1", "route": "/v1/orders/{id}", "client_address": "192.0.2.1",
        "limit_rpm": 60, "generation": 1, "store_time": START_US, "reset_at": START_US + 2_000_000,
        "retry_after_us": 1_000_000, "remaining": 0,
    }  # fmt: skip
    rows = [
        decision_row(0, PASSED, **usual),
        decision_row(1, REFUSED, **{**usual, "verdict": "DENY_429", "reason": "rate_limited"}),
        decision_row(
            2,
            FOREIGN,
            **{**usual, "verdict": "DENY_403", "reason": "ip_not_allowed", "client_address": "198.51.100.7"},
            scope="",
        ),
        decision_row(3, NOBODY, integration="", credential="", reason="unknown_credential"),
    ]
    write_segment(folder / "host-a", 1, rows)
    api.change(ACME + "/limit/set", {"rate_limit_rpm": 600, "burst": 100})
    api.change(ACME + "/allowlist/add", {"entries": ["198.51.100.7"]})
    return api


def explained(api: AdminApi, decision_id: str, who: str = "olli") -> Any:
    """The explanation of one decision."""
    return api.get(f"/v1/decisions/{decision_id}/explanation", who)


def outcome(decided: Any) -> tuple[int, str, list[str]]:
    """Generation, reason and the steps that did not pass."""
    failed = [step["name"] for step in decided["steps"] if step["outcome"] == "failed"]
    return decided["generation"], decided["reason"], failed


def test_explanation__then_and_now(logged: AdminApi) -> None:
    """The record of the decision comes from the audit log; the bucket is that of the row."""
    shown = explained(logged, REFUSED)
    assert outcome(shown["then"]) == (1, "rate_limited", ["bucket"])
    assert shown["then"]["steps"][-1]["detail"] == (
        "0 of 2 tokens left, refilled at 60 a minute; the next in 1 s"
    )
    assert outcome(shown["now"]) == (3, "ok", [])
    assert shown["now"]["steps"][-1]["detail"] == "97 of 100 tokens left, refilled at 600 a minute"
    assert (shown["decision"]["decision_id"], shown["note"]) == (REFUSED, "")
    assert outcome(explained(logged, PASSED)["then"]) == (1, "ok", [])


def test_explanation__an_allowlist_that_was_changed(logged: AdminApi) -> None:
    """The step that failed names the entries of that time."""
    shown = explained(logged, FOREIGN)
    assert outcome(shown["then"]) == (1, "ip_not_allowed", ["allowlist"])
    assert "in none of the 2 entries" in shown["then"]["steps"][2]["detail"]
    assert outcome(shown["now"]) == (3, "ok", [])


def test_explanation__keys_and_suspension_now(logged: AdminApi) -> None:
    """A suspended integration is refused now, and a revoked key is unknown."""
    logged.change(ACME + "/suspend", {"reason": "leak"})
    assert outcome(explained(logged, PASSED)["now"]) == (4, "integration_suspended", ["suspension"])
    assert outcome(explained(logged, PASSED)["then"]) == (1, "ok", [])


def test_explanation__without_a_record(logged: AdminApi) -> None:
    """An unknown caller has no record; the record of a deleted integration no longer exists."""
    shown = explained(logged, NOBODY)
    assert (shown["then"], shown["now"]) == (None, None)
    assert "not identified" in shown["note"]
    logged.call("DELETE", ACME)
    assert "was deleted" in explained(logged, PASSED)["note"]
    logged.refused(404, "not_found", logged.call("GET", f"/v1/decisions/{'0' * 22}/explanation"))

"""Envoy's access log says of each request who it was and why it was answered so."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from tests.e2e.stack import LIMITED_BURST, Stack, upstream_headers
from tests.waiting import eventually


def logged(stack: Stack, decision_id: str) -> dict[str, Any]:
    """The entry of Envoy's access log about this decision."""

    def find() -> dict[str, Any]:
        lines = stack.envoy.printed().splitlines()
        entries = (json.loads(line) for line in lines if line.startswith("{") and decision_id in line)
        return next(entries, {})

    return eventually(find, what=f"decision {decision_id} in the access log")


@pytest.mark.parametrize(
    ("who", "path", "integration", "reason"),
    [
        ("suspended", "/v1/inventory/42", "suspended", "integration_suspended"),
        ("financier", "/v1/inventory/42", "financier", "scope_missing"),
        ("expired", "/v1/inventory/42", "", "expired_credential"),
        ("stranger", "/v1/inventory/42", "", "unknown_credential"),
    ],
)
def test_access_log__says_why_a_request_was_refused(
    any_stack: Stack, who: str, path: str, integration: str, reason: str
) -> None:
    """The log has the real reason, also where the client gets the common one."""
    owner = getattr(any_stack.people, who)
    answer = any_stack.get(path, owner)
    entry = logged(any_stack, answer.one("x-decision-id"))
    assert (entry["method"], entry["path"], entry["status"]) == ("GET", path, 403)
    assert (entry["details"], entry["flags"]) == ("ext_authz_denied", "UAEX")
    assert (entry["verdict"], entry["reason"]) == ("DENY_403", reason)
    assert entry["integration"] == integration
    assert entry["credential"] == (owner.key.credential_id if integration else "")


def test_access_log__joins_the_decision_log_by_its_ids(any_stack: Stack) -> None:
    """Time, address and request id come from Envoy; the API gets the same ids."""
    answer = any_stack.get("/v1/inventory/42", any_stack.people.reader)
    received = upstream_headers(answer)
    entry = logged(any_stack, received["x-decision-id"][0])
    assert datetime.fromisoformat(entry.pop("time")).tzinfo is not None
    assert entry == {
        "client_address": "127.0.0.1",
        "method": "GET",
        "path": "/v1/inventory/42",
        "status": 200,
        "details": "via_upstream",
        "flags": "-",
        "request_id": received["x-request-id"][0],
        "decision_id": received["x-decision-id"][0],
        "integration": "reader",
        "credential": any_stack.people.reader.key.credential_id,
        "verdict": "ALLOW",
        "reason": "ok",
        "fallback": None,
        "would_deny": None,
    }


def test_access_log__says_who_was_limited(stack: Stack) -> None:
    """A 429 is as easy to find."""
    owner = stack.people.limited()
    answers = [stack.get("/v1/inventory/42", owner) for _ in range(LIMITED_BURST + 1)]
    entry = logged(stack, answers[-1].one("x-decision-id"))
    assert (entry["status"], entry["verdict"], entry["reason"]) == (429, "DENY_429", "rate_limited")
    assert (entry["integration"], entry["credential"]) == (owner.id, owner.key.credential_id)


def test_access_log__holds_no_key(stack: Stack) -> None:
    """Neither Envoy's log nor the sidecar's ever shows an API key."""
    answer = stack.get("/v1/nowhere", stack.people.reader)
    logged(stack, answer.one("x-decision-id"))
    secret = stack.people.reader.key.api_key
    assert secret not in stack.envoy.printed()
    assert secret not in stack.sidecar.printed()

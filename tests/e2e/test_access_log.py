"""Envoy's access log says of each request who it was and why it was answered so."""

from __future__ import annotations

import re

import pytest

from tests.e2e.stack import LIMITED_BURST, Stack, upstream_headers
from tests.waiting import eventually


def logged(stack: Stack, decision_id: str) -> str:
    """The line of Envoy's access log about this decision."""

    def find() -> str:
        lines = stack.envoy.printed().splitlines()
        return next((line for line in lines if line.endswith(f"decision={decision_id}")), "")

    return eventually(find, what=f"decision {decision_id} in the access log")


@pytest.mark.parametrize(
    ("who", "path", "expected"),
    [
        (
            "suspended",
            "/v1/inventory/42",
            "integration=suspended credential={} verdict=DENY_403 reason=integration_suspended",
        ),
        (
            "financier",
            "/v1/inventory/42",
            "integration=financier credential={} verdict=DENY_403 reason=scope_",
        ),
        ("expired", "/v1/inventory/42", "verdict=DENY_403 reason=expired_credential"),
        ("stranger", "/v1/inventory/42", "verdict=DENY_403 reason=unknown_credential"),
    ],
)
def test_access_log__says_why_a_request_was_refused(
    any_stack: Stack, who: str, path: str, expected: str
) -> None:
    """The log has the real reason, also where the client is told the common one."""
    answer = any_stack.get(path, getattr(any_stack.people, who))
    line = logged(any_stack, answer.one("x-decision-id"))
    assert expected.format(getattr(any_stack.people, who).key.credential_id) in line
    assert f"GET {path} 403 ext_authz_denied UAEX" in line


def test_access_log__says_who_was_allowed(any_stack: Stack) -> None:
    """The decision id that the API saw leads to the line, and the line names the integration."""
    answer = any_stack.get("/v1/inventory/42", any_stack.people.reader)
    (decision_id,) = [value for name, value in answer.json()["headers"] if name == "x-decision-id"]
    line = logged(any_stack, decision_id)
    assert "GET /v1/inventory/42 200 via_upstream" in line
    credential = any_stack.people.reader.key.credential_id
    assert f"integration=reader credential={credential} verdict=ALLOW reason=ok fallback=- " in line


def test_access_log__says_when_from_where_and_which_request(any_stack: Stack) -> None:
    """Time, address and request id come from Envoy; the API gets the same request id."""
    answer = any_stack.get("/v1/inventory/42", any_stack.people.reader)
    received = upstream_headers(answer)
    line = logged(any_stack, received["x-decision-id"][0])
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z 127\.0\.0\.1 GET .* request=(\S+) integration="
    match = re.match(pattern, line)
    assert match is not None and [match[1]] == received["x-request-id"]


def test_access_log__says_who_was_limited(stack: Stack) -> None:
    """A 429 is as easy to find."""
    owner = stack.people.limited()
    answers = [stack.get("/v1/inventory/42", owner) for _ in range(LIMITED_BURST + 1)]
    line = logged(stack, answers[-1].one("x-decision-id"))
    assert "429 ext_authz_denied UAEX request=" in line
    assert (
        f"integration={owner.id} credential={owner.key.credential_id} verdict=DENY_429 reason=rate_lim"
        in line
    )


def test_access_log__holds_no_key(stack: Stack) -> None:
    """Neither Envoy's log nor the sidecar's ever shows an API key."""
    answer = stack.get("/v1/nowhere", stack.people.reader)
    logged(stack, answer.one("x-decision-id"))
    secret = stack.people.reader.key.api_key
    assert secret not in stack.envoy.printed()
    assert secret not in stack.sidecar.printed()

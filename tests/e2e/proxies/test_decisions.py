"""What clients and the API see behind nginx, Caddy and HAProxy, whose configurations are those of deploy/."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import datetime

import pytest

from deploy.demo.calling import Answer, Client
from tests.e2e.stack import LIMITED_BURST, LIMITED_RPM, Stack, upstream_headers
from tests.e2e.test_identity import IDENTITY, SPOOFED
from tests.waiting import eventually

LIMITS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
METHODS = ("GET", "POST", "PUT", "DELETE")
TRICKS = (
    "/v1/inventory/../finance/invoices",
    "/v1/inventory/%2e%2e/finance/invoices",
    "/v1/inventory/%252e%252e/finance/invoices",
    "/v1/inventory/..%2ffinance/invoices",
    "/v1/inventory/..%5cfinance/invoices",
    "/v1/inventory/..;/finance/invoices",
    "//v1/finance/invoices",
    "/v1//finance/invoices",
    "/V1/finance/invoices",
    "/v1/%66inance/invoices",
    "/v1/finance/invoices/",
    "/v1/finance/invoices%00",
    "/v1/finance/invoices%0d%0ax-api-key:%20x",
    "/v1/./finance/invoices",
)
"""Spellings of a path that 'reader' may not call; every API would serve some of them as that path."""


def denied(answer: Answer, status: int, reason: str) -> dict[str, object]:
    """Check that *answer* is a whole denial; return the problem."""
    problem: dict[str, object] = answer.json()
    assert (answer.status, problem["status"], problem["reason"]) == (status, status, reason)
    assert answer.one("content-type") == "application/problem+json"
    assert answer.one("x-auth-reason") == reason
    assert answer.one("x-decision-id") == problem["decision_id"]
    assert answer.one("cache-control") == "no-store"
    assert problem["detail"]
    return problem


def test_allowed__limits_for_the_client_identity_for_the_api(stack: Stack) -> None:
    """The API's answer carries the limits, once each; the API learns who calls, but not the key."""
    reader = stack.people.reader
    own = [("x-answer-with", f"{name}=7") for name in LIMITS]
    answer = stack.get("/v1/inventory/42?page=2", reader, own)
    assert (answer.status, answer.json()["path"]) == (200, "/v1/inventory/42?page=2")
    assert answer.one("x-ratelimit-limit") == "10000"
    assert int(answer.one("x-ratelimit-remaining")) > 7
    assert int(answer.one("x-ratelimit-reset")) >= int(time.time())
    headers = upstream_headers(answer)
    assert headers["x-integration-id"] == ["reader"]
    assert headers["x-integration-name"] == ["Caf%C3%A9 Reader, 100 %25"]
    assert headers["x-credential-id"] == [reader.key.credential_id]
    assert reader.key.api_key not in str(headers)


def test_allowed__what_a_rule_in_shadow_would_deny(stack: Stack) -> None:
    """The client gets the reason if there is one; what the API says about it does not count."""
    for name, reasons in (("shadowed", ["ip_not_allowed"]), ("reader", [])):
        own = [("x-answer-with", "x-auth-would-deny=forged")]
        answer = stack.get("/v1/inventory/42", getattr(stack.people, name), own)
        assert (answer.status, answer.all("x-auth-would-deny")) == (200, reasons)
        assert "x-auth-would-deny" not in upstream_headers(answer)


def test_allowed__forged_identity_is_overwritten(stack: Stack) -> None:
    """Whatever a client claims to be, the API sees the decision's values alone."""
    headers = upstream_headers(stack.get("/v1/inventory/42", stack.people.reader, SPOOFED * 2))
    assert headers["x-integration-id"] == ["reader"]
    assert [len(headers[name]) for name in IDENTITY] == [1, 1, 1, 1]
    assert "forged" not in str(headers)


def test_allowed__key_as_bearer_token(stack: Stack) -> None:
    """It is found there, and the API does not get it."""
    bearer = ("authorization", f"Bearer {stack.people.reader.key.api_key}")
    answer = stack.get("/v1/inventory/42", headers=[bearer])
    assert answer.status == 200
    assert "authorization" not in upstream_headers(answer)


@pytest.mark.parametrize("method", METHODS)
def test_allowed__method_and_body_reach_the_api(method: str, stack: Stack) -> None:
    """The sidecar is asked about the client's method and never sees the body, however large it is."""
    body = None if method == "GET" else b"x" * 200_000
    answer = stack.send(method, "/v1/echo/x", stack.people.reader, body=body)
    assert answer.status == 200
    assert (answer.json()["method"], answer.json()["body_bytes"]) == (method, len(body or b""))


def test_allowed__head(stack: Stack) -> None:
    """HEAD is judged as HEAD, and answered without a body."""
    answer = stack.send("HEAD", "/v1/echo/x", stack.people.reader)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.one("x-ratelimit-limit") == "10000"


def test_allowed__errors_of_the_api_stay_its_own(stack: Stack) -> None:
    """A 403 or 500 of the API is no denial of the sidecar, and has the limits all the same."""
    for status in (403, 429, 500):
        answer = stack.get("/v1/echo/x", stack.people.reader, [("x-answer-status", str(status))])
        assert (answer.status, answer.json()["method"]) == (status, "GET")
        assert answer.one("x-ratelimit-limit") == "10000"


@pytest.mark.parametrize(
    ("who", "path", "status", "reason"),
    [
        (None, "/v1/inventory/42", 401, "missing_credential"),
        ("stranger", "/v1/inventory/42", 401, "unknown_credential"),
        ("suspended", "/v1/inventory/42", 403, "integration_suspended"),
        ("foreigner", "/v1/inventory/42", 403, "ip_not_allowed"),
        ("reader", "/v1/finance/invoices", 403, "scope_missing"),
        ("reader", "/v1/inventory/a;b", 403, "path_refused"),
        ("reader", "/v1/nowhere", 403, "route_unknown"),
    ],
)
def test_denied__status_reason_and_problem(
    who: str | None, path: str, status: int, reason: str, stack: Stack
) -> None:
    """The client gets what the sidecar decided, and the API is not asked."""
    answer = stack.get(path, None if who is None else getattr(stack.people, who))
    denied(answer, status, reason)
    assert bool(answer.all("www-authenticate")) == (status == 401)
    assert len(answer.all("x-ratelimit-limit")) == (1 if status == 403 else 0)


def test_denied__one_request_too_many_is_a_429(stack: Stack) -> None:
    """With when to come back."""
    owner = stack.people.limited()
    answers = [stack.get("/v1/inventory/42", owner) for _ in range(LIMITED_BURST + 1)]
    assert [answer.status for answer in answers[:-1]] == [200] * LIMITED_BURST
    problem = denied(answers[-1], 429, "rate_limited")
    assert answers[-1].one("x-ratelimit-limit") == str(LIMITED_RPM)
    assert answers[-1].one("x-ratelimit-remaining") == "0"
    assert 1 <= int(answers[-1].one("retry-after")) <= 60
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"


def test_denied__clients_address_is_the_proxys_word(stack: Stack) -> None:
    """No header of the client changes the address that the allowlist is asked about."""
    claims = [(name, "198.51.100.7") for name in ("x-forwarded-for", "x-real-ip", "x-client-ip", "forwarded")]
    denied(stack.get("/v1/inventory/42", stack.people.foreigner, claims), 403, "ip_not_allowed")
    assert stack.get("/v1/inventory/42", stack.people.neighbor, claims).status == 200


def test_denied__clients_cannot_speak_for_the_proxy(stack: Stack) -> None:
    """No header of the client changes which method and path are judged."""
    claims = [
        (f"x-{kind}-{name}", value)
        for kind in ("original", "forwarded")
        for name, value in (("uri", "/v1/inventory/42"), ("method", "GET"))
    ]
    denied(stack.get("/v1/finance/invoices", stack.people.reader, claims), 403, "scope_missing")


def test_denied__clients_query_states_no_scope(stack: Stack) -> None:
    """Caddy sends the client's query to the sidecar, too."""
    answer = stack.get("/v1/finance/invoices?scope=none", stack.people.reader)
    denied(answer, 403, "scope_missing")


@pytest.mark.parametrize("path", TRICKS)
def test_denied__path_that_the_api_reads_is_the_one_that_was_judged(path: str, stack: Stack) -> None:
    """No spelling of a path reaches the API as one that its caller may not call."""
    answer = stack.get(path, stack.people.reader)
    if answer.status == 200:
        assert "finance" not in answer.json()["path"].lower()
        assert not answer.json()["path"].startswith("//")
    else:
        assert answer.status in (400, 403)


def test_denied__the_clients_connection_is_kept(stack: Stack) -> None:
    """Allowed and denied requests, one after another on one connection."""
    with contextlib.closing(Client(stack.port)) as client:
        for _ in range(3):
            assert client.send("GET", "/v1/inventory/42", stack.people.reader.headers).status == 200
            assert client.send("GET", "/v1/inventory/42").status == 401
            refused = client.send("GET", "/v1/finance/x", stack.people.reader.headers)
            assert refused.all("connection") in ([], ["keep-alive"])


@pytest.mark.parametrize("stack", ["nginx-tcp", "nginx-accel-tcp"], indirect=True)
@pytest.mark.parametrize(
    ("name", "status", "reason", "would_deny"),
    [
        ("reader", 200, "ok", ""),
        ("shadowed", 200, "ok", "ip_not_allowed"),
        ("suspended", 403, "integration_suspended", ""),
    ],
)
def test_access_log__of_nginx_joins_the_decision_log(
    name: str, status: int, reason: str, would_deny: str, stack: Stack
) -> None:
    """The decision id that the API or the client has leads to the entry."""
    owner = getattr(stack.people, name)
    answer = stack.get("/v1/inventory/42", owner)
    decision_id = (
        upstream_headers(answer)["x-decision-id"][0] if status == 200 else answer.one("x-decision-id")
    )

    def find() -> dict[str, object]:
        lines = stack.proxy.printed().splitlines()
        return next((json.loads(line) for line in lines if line.startswith("{") and decision_id in line), {})

    entry = eventually(find, what=f"decision {decision_id} in the access log")
    assert datetime.fromisoformat(str(entry.pop("time"))).tzinfo is not None
    assert entry.pop("request_id")
    assert entry == {
        "client_address": "127.0.0.1",
        "method": "GET",
        "path": "/v1/inventory/42",
        "status": str(status),
        "decision_id": decision_id,
        "integration": name if status == 200 else "",
        "credential": owner.key.credential_id if status == 200 else "",
        "reason": reason,
        "fallback": "",
        "would_deny": would_deny,
    }
    assert "uninitialized" not in stack.proxy.printed()

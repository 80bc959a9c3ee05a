"""Each row of the table of answers, as a client of the proxy sees it."""

from __future__ import annotations

import time

import httpx
import pytest

from deploy.demo.calling import Answer
from tests.e2e.stack import AMPLE_BURST, LIMITED_BURST, LIMITED_RPM, Stack, upstream_headers

RATE_LIMIT_HEADERS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
BAD_CHECKSUM = "sck_AAAAAAAAAA_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBCCCCCC"


def denied(answer: Answer, status: int, reason: str) -> dict[str, object]:
    """Check that *answer* is a whole denial with this *reason*; return its body."""
    problem: dict[str, object] = answer.json()
    assert (answer.status, problem["status"], problem["reason"]) == (status, status, reason)
    assert answer.one("content-type") == "application/problem+json"
    assert answer.one("cache-control") == "no-store"
    assert answer.one("x-auth-reason") == reason
    assert answer.one("x-decision-id") == problem["decision_id"]
    assert problem["title"] and problem["detail"] and problem["type"]
    return problem


def test_answers__an_allowed_request_reaches_the_api(any_stack: Stack) -> None:
    """A known key with the scope gets the API's answer, with its limits on it."""
    answer = any_stack.get("/v1/inventory/42?page=2", any_stack.people.reader)
    assert (answer.status, answer.json()["path"]) == (200, "/v1/inventory/42?page=2")
    assert answer.one("x-ratelimit-limit") == "10000"
    assert 0 < int(answer.one("x-ratelimit-remaining")) < AMPLE_BURST
    assert int(answer.one("x-ratelimit-reset")) >= int(time.time())
    assert answer.all("retry-after") == []


def test_answers__a_bearer_token_is_a_key_too(stack: Stack) -> None:
    """`authorization: Bearer` carries a key as well as x-api-key does, and is taken away as well."""
    bearer = f"Bearer {stack.people.reader.key.api_key}"
    answer = stack.get("/v1/inventory/42", headers=[("authorization", bearer)])
    assert answer.status == 200
    assert "authorization" not in upstream_headers(answer)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "missing_credential"),
        ([("x-api-key", "")], "missing_credential"),
        ([("authorization", "Basic dXNlcjpwYXNz")], "missing_credential"),
        ([("x-api-key", "hello")], "unknown_credential"),
        ([("x-api-key", BAD_CHECKSUM)], "unknown_credential"),
        ([("authorization", "Bearer sck_hello")], "unknown_credential"),
        ([("authorization", "Bearer hello")], "missing_credential"),
    ],
)
def test_answers__a_caller_that_is_not_known(
    any_stack: Stack, headers: list[tuple[str, str]], reason: str
) -> None:
    """No key, or one that cannot be ours, is a 403 without limits: there is nobody they belong to."""
    answer = any_stack.get("/v1/inventory/42", headers=headers)
    denied(answer, 403, reason)
    assert [answer.all(name) for name in RATE_LIMIT_HEADERS] == [[], [], []]


@pytest.mark.parametrize("who", ["stranger", "expired"])
def test_answers__a_key_that_is_not_accepted(any_stack: Stack, who: str) -> None:
    """An unknown and an expired key get one and the same text as a malformed one: keys cannot be probed."""
    answer = any_stack.get("/v1/inventory/42", getattr(any_stack.people, who))
    malformed = any_stack.get("/v1/inventory/42", headers=[("x-api-key", "hello")])
    problem = denied(answer, 403, "unknown_credential")
    assert problem["detail"] == denied(malformed, 403, "unknown_credential")["detail"]
    assert [name for name, _ in answer.headers] == [name for name, _ in malformed.headers]


@pytest.mark.parametrize(
    ("who", "path", "reason"),
    [
        ("suspended", "/v1/inventory/42", "integration_suspended"),
        ("foreigner", "/v1/inventory/42", "ip_not_allowed"),
        ("reader", "/v1/inventory/a;b", "path_refused"),
        ("financier", "/v1/inventory/42", "scope_missing"),
        ("reader", "/v1/nowhere", "route_unknown"),
    ],
)
def test_answers__a_known_caller_that_may_not(any_stack: Stack, who: str, path: str, reason: str) -> None:
    """A refusal of a known integration is a 403 with its limits, and takes no token."""
    owner = getattr(any_stack.people, who)
    before, after = any_stack.get(path, owner), any_stack.get(path, owner)
    denied(before, 403, reason)
    assert after.one("x-ratelimit-limit") == "10000"
    assert int(after.one("x-ratelimit-remaining")) >= int(before.one("x-ratelimit-remaining"))
    assert int(after.one("x-ratelimit-reset")) >= int(time.time()) - 1
    assert after.all("retry-after") == []


def test_answers__an_address_on_the_allowlist_passes(any_stack: Stack) -> None:
    """The address that Envoy puts into x-client-ip is the one that the allowlist is held against."""
    assert any_stack.get("/v1/inventory/42", any_stack.people.neighbor).status == 200


def test_answers__the_refused_address_is_named(stack: Stack) -> None:
    """A foreign caller learns which address was seen: that is what an administrator needs."""
    problem = denied(stack.get("/v1/inventory/42", stack.people.foreigner), 403, "ip_not_allowed")
    assert "127.0.0.1" in str(problem["detail"])


def test_answers__the_scope_of_the_proxys_route_wins(any_stack: Stack) -> None:
    """Below /v1/finance Envoy asks for finance:write, which the route table does not even know."""
    reader = any_stack.get("/v1/finance/invoices", any_stack.people.reader)
    assert "finance:write" in str(denied(reader, 403, "scope_missing")["detail"])
    assert any_stack.get("/v1/finance/invoices", any_stack.people.financier).status == 200


def test_answers__the_missing_scope_is_named(stack: Stack) -> None:
    """A client that lacks a scope learns which."""
    answer = stack.send("POST", "/v1/orders", stack.people.reader, body=b"{}")
    assert "orders:write" in str(denied(answer, 403, "scope_missing")["detail"])


def test_answers__a_bucket_runs_empty(any_stack: Stack) -> None:
    """A burst passes to its last token; then 429 says when to come back, and refused calls cost nothing."""
    owner = any_stack.people.limited()
    remaining = []
    for _ in range(LIMITED_BURST):
        answer = any_stack.get("/v1/inventory/42", owner)
        assert answer.status == 200
        remaining.append(answer.one("x-ratelimit-remaining"))
    assert remaining == ["2", "1", "0"]
    now_s = int(time.time())
    first, second = any_stack.get("/v1/inventory/42", owner), any_stack.get("/v1/inventory/42", owner)
    problem = denied(first, 429, "rate_limited")
    assert first.one("x-ratelimit-limit") == str(LIMITED_RPM)
    assert first.one("x-ratelimit-remaining") == "0"
    assert 55 <= int(first.one("retry-after")) <= 60
    assert now_s + 170 <= int(first.one("x-ratelimit-reset")) <= now_s + 181
    assert first.one("x-ratelimit-reset") == second.one("x-ratelimit-reset")
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"


def test_answers__a_refusal_shows_what_is_left_without_taking_it(any_stack: Stack) -> None:
    """Ten refusals for a missing scope leave the burst as it was."""
    owner = any_stack.people.limited()
    for _ in range(10):
        answer = any_stack.get("/v1/nowhere", owner)
        assert (answer.status, answer.one("x-ratelimit-remaining")) == (403, str(LIMITED_BURST))


def test_answers__401_where_the_configuration_wants_it(stack_401: Stack) -> None:
    """`unauthenticated_status: 401` challenges callers that are not known, and only those."""
    for headers in ([], [("x-api-key", "hello")], stack_401.people.expired.headers):
        answer = stack_401.get("/v1/inventory/42", headers=headers)
        denied(answer, 401, "unknown_credential" if headers else "missing_credential")
        assert answer.one("www-authenticate").startswith("Bearer ")
    known = stack_401.get("/v1/inventory/42", stack_401.people.suspended)
    assert (known.status, known.all("www-authenticate")) == (403, [])


def test_answers__headers_of_the_ietf_draft(stack_401: Stack) -> None:
    """`ietf_headers: true` adds RateLimit and RateLimit-Policy beside X-RateLimit-*."""
    owner = stack_401.people.limited()
    allowed = stack_401.get("/v1/inventory/42", owner)
    assert allowed.one("ratelimit-policy") == '"rpm";q=1;w=60'
    assert allowed.one("ratelimit") == '"rpm";r=2'
    for _ in range(LIMITED_BURST):
        limited = stack_401.get("/v1/inventory/42", owner)
    assert limited.one("ratelimit") == f'"rpm";r=0;t={limited.one("retry-after")}'


def test_answers__http_2_clients_get_the_same(stack: Stack) -> None:
    """The answers do not depend on the protocol between client and proxy."""
    with httpx.Client(http1=False, http2=True) as client:
        url = f"http://127.0.0.1:{stack.envoy.port}"
        allowed = client.get(f"{url}/v1/inventory/42", headers=dict(stack.people.reader.headers))
        refused = client.get(f"{url}/v1/inventory/42")
    assert (allowed.status_code, allowed.http_version) == (200, "HTTP/2")
    assert allowed.headers["x-ratelimit-limit"] == "10000"
    assert (refused.status_code, refused.json()["reason"]) == (403, "missing_credential")

"""A decision explained step by step."""

from __future__ import annotations

import json

import pytest

from sidecar.domain.answers import AnswerStyle, Decision, answer_to
from sidecar.domain.decisions import Reason
from sidecar.domain.enforcement import Rule
from sidecar.domain.integrations import Integration, Status
from sidecar.domain.policy import AccessRequest
from sidecar.services.explain import FAILED, NOT_REACHED, PASSED, SHADOWED, STEPS, as_plain_data, explain
from sidecar.stores.protocols import BucketStore, StoreFault
from tests.building import (
    NOW_US,
    SECOND_US,
    FixedStore,
    make_decider,
    make_integration,
    make_key,
    make_policy,
    make_request,
)

KEY = make_key()
OTHER = make_key()


def decide(
    request: AccessRequest, record: Integration, store: BucketStore | None = None, times: int = 1
) -> Decision:
    """The last of several decisions about *request*."""
    decider = make_decider(record, store=store)
    for _ in range(times):
        decision = decider.decide(request, None, never_late, None)
    assert decision is not None
    return decision


def never_late(decision: Decision, context: None) -> None:
    """The embedded store answers at once."""


CASES = [
    (make_request(KEY.api_key), {}, "", "59 of 60 tokens left, refilled at 60 a minute"),
    (make_request(None), {}, "credential", "the request carries no API key"),
    (make_request("nonsense"), {}, "credential", "not an API key: its shape or its checksum is wrong"),
    (make_request(OTHER.api_key), {}, "credential", "no integration has this API key"),
    (make_request(KEY.api_key), {"expires_at_us": NOW_US}, "credential", "the API key has expired"),
    (make_request(KEY.api_key), {"status": Status.SUSPENDED}, "suspension", "suspended by an administrator"),
    (
        make_request(KEY.api_key, peer="203.0.113.9"), {"allowlist": ("192.0.2.0/24", "10.0.0.0/8")},
        "allowlist", "203.0.113.9 is in none of the 2 entries",
    ),
    (
        make_request(KEY.api_key, peer=""), {"allowlist": ("192.0.2.0/24",)}, "allowlist",
        "This integration has an IP allowlist, and the client address of the request cannot be"
        " determined; the operator of the API must correct this: the peer of the proxy: '' is not an IP"
        " address: the text is empty",
    ),
    (
        make_request(KEY.api_key, path="/v1//orders"), {}, "path",
        "The path holds '//'. Send one '/' between segments.",
    ),
    (
        make_request(KEY.api_key, path="/v1/finance/1"), {}, "scope",
        "the route requires finance:read; the integration has orders:read",
    ),
    (
        make_request(KEY.api_key, path="/v1/finance/1"), {"scopes": ()}, "scope",
        "the route requires finance:read; the integration has no scopes",
    ),
    (make_request(KEY.api_key, path="/v2"), {}, "route", "no route matches the path"),
    (
        make_request(KEY.api_key, method="PUT"), {}, "route",
        "routes match the path, but none of them with the method PUT",
    ),
    (
        make_request(KEY.api_key, scope="crm:write"), {}, "scope",
        "the proxy requires crm:write; the integration has orders:read",
    ),
    (
        make_request(KEY.api_key, scope="crm"), {}, "route",
        "the proxy states 'crm', which is not a scope of the configuration; correct it in the proxy",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "fields", "failed", "detail"), CASES)
def test_explain__tells_the_step_that_failed(
    request_: AccessRequest, fields: dict[str, object], failed: str, detail: str
) -> None:
    """What comes before passed, what comes after was not reached, and the detail says what was found."""
    steps = explain(request_, decide(request_, make_integration(KEY, **fields)))  # type: ignore[arg-type]
    at = STEPS.index(failed) if failed else len(STEPS)
    assert [step.name for step in steps] == list(STEPS)
    assert [step.outcome for step in steps] == (
        [PASSED] * at + [FAILED] * (at < len(STEPS)) + [NOT_REACHED] * (len(STEPS) - at - 1)
    )
    assert steps[min(at, len(STEPS) - 1)].detail == detail


@pytest.mark.parametrize(
    ("path", "step", "named"),
    [
        ("/Admin/x", "path", "It matches /** (scope: none) and /admin/** (scope: orders:write)."),
        ("/admin/x", "route", "a route matches: /admin/** (scope: orders:write)"),
    ],
)
def test_explain__routes_are_named(path: str, step: str, named: str) -> None:
    """It names the routes that a path may lead to, for the person who configures them."""
    request = make_request(KEY.api_key, path=path)
    policy = make_policy(routes=[("GET", "/admin/**", "orders:write"), ("GET", "/**", None)])
    decision = make_decider(make_integration(KEY), policy=policy).decide(request, None, never_late, None)
    assert decision is not None
    [found] = [each for each in explain(request, decision, policy.routes) if each.name == step]
    assert named in found.detail


def test_explain__an_empty_bucket() -> None:
    """A rate limit shows what is left and when the next token comes."""
    request = make_request(KEY.api_key)
    steps = explain(request, decide(request, make_integration(KEY, burst=1), times=2))
    assert steps[-1] == (
        "bucket", FAILED, "0 of 1 tokens left, refilled at 60 a minute; the next in 1 s",
    )  # fmt: skip


@pytest.mark.parametrize("fault", [StoreFault.UNAVAILABLE, StoreFault.OVERLOADED])
def test_explain__a_store_without_an_answer(fault: StoreFault) -> None:
    """The bucket failed, everything before it passed."""
    request = make_request(KEY.api_key)
    steps = explain(request, decide(request, make_integration(KEY), FixedStore(fault)))
    assert steps[-1] == ("bucket", FAILED, "the store did not answer")


def test_explain__what_passed_is_reported_too() -> None:
    """Whose key, until when, which block, which scope."""
    request = make_request(KEY.api_key, peer="192.0.2.7", path="/v1/status?x=1")
    record = make_integration(KEY, allowlist=("192.0.2.0/24",), expires_at_us=NOW_US + 3600 * SECOND_US)
    details = [step.detail for step in explain(request, decide(request, record))]
    assert details[:6] == [
        f"{KEY.credential_id} of Acme GmbH (acme), valid until 2025-11-24T17:00:00Z",
        "active",
        "192.0.2.7 is in 192.0.2.0/24",
        "/v1/status",
        "a route matches",
        "the route requires no scope",
    ]


@pytest.mark.parametrize(
    ("asked", "step", "detail"),
    [
        ({"peer": "203.0.113.9"}, "allowlist", "203.0.113.9 is in none of the 1 entries"),
        ({"path": "/v1//x"}, "path", "//"),
        ({"path": "/nowhere"}, "route", "no route matches the path"),
        ({"path": "/v1/finance/1"}, "scope", "the route requires finance:read"),
        ({"peer": "203.0.113.9", "path": "/v1//x"}, "allowlist", "none of the 1 entries"),
    ],
)
def test_explain__a_rule_in_shadow(asked: dict[str, str], step: str, detail: str) -> None:
    """The first step that would fail is marked, and all others are reached."""
    request = make_request(KEY.api_key, **{"peer": "192.0.2.7", **asked})
    record = make_integration(KEY, allowlist=("192.0.2.0/24",), shadow=frozenset(Rule))
    steps = explain(request, decide(request, record))
    ((name, _, reported),) = [found for found in steps if found.outcome == SHADOWED]
    assert (name, detail in reported) == (step, True)
    assert {found.outcome for found in steps} == {PASSED, SHADOWED}


def test_explain__every_reason_has_its_step() -> None:
    """A reason that is added must be explained: none but OK is without a step that failed."""
    request = make_request(KEY.api_key)
    evaluation = decide(request, make_integration(KEY)).evaluation
    for reason in Reason:
        known = evaluation if not reason.is_credential_fault else type(evaluation)(reason)
        outcomes = [step.outcome for step in explain(request, Decision("id", reason, known, None))]
        assert (FAILED in outcomes) == (reason is not Reason.OK)


def test_answer_to__an_allow() -> None:
    """Client and upstream get their headers, and the key is taken away."""
    answer = answer_to(decide(make_request(KEY.api_key), make_integration(KEY)), AnswerStyle())
    assert (answer.status, answer.removed_headers, answer.body) == (200, ("x-api-key",), b"")
    assert [name for name, _ in answer.client_headers] == [
        "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
    ]  # fmt: skip
    assert dict(answer.upstream_headers)["x-integration-id"] == "acme"


def test_answer_to__a_denial_in_its_style() -> None:
    """Status, headers and body follow the configuration."""
    answer = answer_to(decide(make_request(None), make_integration(KEY)), AnswerStyle(401))
    assert (answer.status, json.loads(answer.body)["status"]) == (401, 401)
    assert "www-authenticate" in dict(answer.client_headers)
    assert (answer.upstream_headers, answer.removed_headers) == ([], ())


def test_as_plain_data__is_json() -> None:
    """Everything for `--json`, an unknown caller included."""
    for request in (make_request(KEY.api_key), make_request(None)):
        decision = decide(request, make_integration(KEY))
        data = as_plain_data(explain(request, decision), answer_to(decision, AnswerStyle()))
        assert json.loads(json.dumps(data)) == data
        assert data["verdict"] == decision.reason.verdict.value
        assert [step["name"] for step in data["steps"]] == list(STEPS)

"""The words of an answer. Their safety as headers is in tests/property/test_header_encoding.py."""

from __future__ import annotations

import doctest
import json
from typing import Any

import pytest

from sidecar.domain import answers
from sidecar.domain.answers import (
    AnswerStyle,
    Limits,
    denial_headers,
    fallback_headers,
    header_value,
    http_status,
    identity_headers,
    limit_headers,
    problem_body,
)
from sidecar.domain.cidr import parse_address
from sidecar.domain.credential_sources import IDENTITY_HEADERS
from sidecar.domain.decisions import Reason, Verdict
from sidecar.domain.fail_policy import FailPolicy, Fallback
from sidecar.domain.policy import Evaluation
from sidecar.domain.scopes import Scope
from sidecar.domain.snapshot import Snapshot
from tests.building import make_integration, make_key

STYLE = AnswerStyle()
SOME_LEFT = Limits("600", "7", "1764000060")
NONE_LEFT = Limits("600", "0", "1764000060", "2")
DENY_REASONS = [reason for reason in Reason if reason.verdict is not Verdict.ALLOW]


def problem(
    reason: Reason, limits: Limits | None = SOME_LEFT, style: AnswerStyle = STYLE, **fields: Any
) -> Any:
    """The problem document of a denial."""
    return json.loads(problem_body(reason, Evaluation(reason, **fields), "id", limits, style))


@pytest.mark.pure
def test_answers__examples_in_its_docstrings() -> None:
    """The examples in the module are true."""
    assert doctest.testmod(answers) == doctest.TestResults(failed=0, attempted=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Acme GmbH & Co. KG", "Acme GmbH & Co. KG"),
        ("Café", "Caf%C3%A9"),
        ("a\r\nx: 1\x00", "a%0D%0Ax: 1%00"),
        ("%0d%0a", "%250d%250a"),
        ("\x7f\x80", "%7F%C2%80"),
    ],
)
def test_header_value__encodes_what_is_no_printable_ascii(text: str, expected: str) -> None:
    """And '%', so that the value can be read back."""
    assert header_value(text) == expected


def test_limit_headers__the_three_everybody_knows() -> None:
    """Limit, remaining and reset, as figures."""
    assert limit_headers(SOME_LEFT, STYLE) == [
        ("x-ratelimit-limit", "600"),
        ("x-ratelimit-remaining", "7"),
        ("x-ratelimit-reset", "1764000060"),
    ]


@pytest.mark.parametrize(("limits", "expected"), [(SOME_LEFT, '"rpm";r=7'), (NONE_LEFT, '"rpm";r=0;t=2')])
def test_limit_headers__ietf(limits: Limits, expected: str) -> None:
    """Draft-10 structured fields; `t` is only beside r=0, so nobody is invited to burst."""
    headers = limit_headers(limits, AnswerStyle(ietf_headers=True))
    assert headers[:3] == limit_headers(limits, STYLE)
    assert headers[3:] == [("ratelimit-policy", '"rpm";q=600;w=60'), ("ratelimit", expected)]


def test_identity_headers__of_a_known_caller() -> None:
    """Integration, name, credential and decision, the name encoded."""
    key = make_key()
    integration = Snapshot.compile([make_integration(key, name="Café")]).integrations["acme"]
    evaluation = Evaluation(Reason.OK, integration, integration.credentials[0])
    assert identity_headers(evaluation, "d1") == [
        ("x-integration-id", "acme"),
        ("x-integration-name", "Caf%C3%A9"),
        ("x-credential-id", key.credential_id),
        ("x-decision-id", "d1"),
    ]


def test_identity_headers__of_nobody_are_there_and_empty() -> None:
    """An absent header would let the client's own copy through."""
    headers = identity_headers(Evaluation(Reason.OK), "d1")
    assert [name for name, _ in headers] == list(IDENTITY_HEADERS)
    assert [value for _, value in headers] == ["", "", "", "d1"]


@pytest.mark.parametrize("reason", DENY_REASONS, ids=lambda reason: reason.label)
def test_http_status__401_takes_the_place_of_403_for_unknown_callers_only(reason: Reason) -> None:
    """The style changes credential faults and nothing else."""
    assert http_status(reason, STYLE) == reason.http_status
    expected = 401 if reason.is_credential_fault else reason.http_status
    assert http_status(reason, AnswerStyle(unauthenticated_status=401)) == expected


def test_denial_headers__retry_after_only_where_waiting_helps() -> None:
    """429 has the wait for a token, 503 a second; a 403 will not change by itself."""
    with_wait = {
        reason: dict(denial_headers(reason, "id", NONE_LEFT, STYLE)).get("retry-after")
        for reason in DENY_REASONS
    }
    assert {reason: wait for reason, wait in with_wait.items() if wait} == {
        Reason.RATE_LIMITED: "2",
        Reason.STORE_UNAVAILABLE: "1",
        Reason.OVERLOADED: "1",
        Reason.KEY_FLOOD: "60",
    }


def test_denial_headers__without_limits() -> None:
    """Where no bucket was looked at, no figures are made up."""
    assert denial_headers(Reason.SCOPE_MISSING, "d1", None, STYLE) == [
        ("content-type", "application/problem+json"),
        ("cache-control", "no-store"),
        ("x-decision-id", "d1"),
        ("x-auth-reason", "scope_missing"),
    ]


@pytest.mark.parametrize("reason", DENY_REASONS, ids=lambda reason: reason.label)
def test_problem_body__every_reason_has_its_words(reason: Reason) -> None:
    """Type, title, status, what to do, reason and decision id (RFC 9457)."""
    document = problem(reason, NONE_LEFT)
    assert document["status"] == reason.http_status
    assert document["reason"] == reason.public_label
    assert document["decision_id"] == "id"
    assert document["title"]
    assert document["detail"].endswith(".")
    assert document["type"].endswith((f":{reason.public_label}", "#quota-exceeded"))


def test_problem_body__titles_and_types_differ_between_public_reasons() -> None:
    """A program can distinguish the reasons by type alone."""
    public = {reason.public_label for reason in DENY_REASONS}
    documents = [problem(reason) for reason in DENY_REASONS]
    assert len({document["type"] for document in documents}) == len(public)
    assert len({document["title"] for document in documents}) == len(public)


def test_problem_body__says_where_the_key_goes() -> None:
    """In the words of the configuration."""
    style = AnswerStyle(key_hint="x-token: <key>")
    assert (
        problem(Reason.MISSING_CREDENTIAL, None, style)["detail"]
        == "Send your API key in the header x-token: <key>."
    )


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "from 192.0.2.1 are"),
        ("2001:db8::1", "from 2001:db8::1 are"),
        ("::1.2.3.4", "from ::102:304 are"),
        (None, "from an unknown address are"),
    ],
)
def test_problem_body__names_the_address(address: str | None, expected: str) -> None:
    """In its one canonical spelling, as it would be in the allowlist."""
    client = None if address is None else parse_address(address)
    assert expected in problem(Reason.IP_NOT_ALLOWED, client_address=client)["detail"]


def test_problem_body__names_the_scope() -> None:
    """The missing one, as it is written."""
    assert (
        "the scope orders:write, which"
        in problem(Reason.SCOPE_MISSING, scope=Scope("orders", "write"))["detail"]
    )


def test_problem_body__prefers_what_the_evaluation_found() -> None:
    """What exactly is wrong is reported instead of what is always true of the reason."""
    for reason in (Reason.PATH_REFUSED, Reason.URI_TOO_LONG, Reason.MALFORMED_CREDENTIAL):
        assert problem(reason, detail="Mend it.")["detail"] == "Mend it."


def test_problem_body__tells_how_long_to_wait() -> None:
    """The limit, the wait for a token, and what the reset means."""
    document = problem(Reason.RATE_LIMITED, NONE_LEFT)
    assert document["detail"].startswith("600 requests per minute are allowed; retry in 2 s.")
    assert "X-RateLimit-Reset is the time at which your whole burst is available" in document["detail"]
    assert document["violated-policies"] == ["rpm"]
    assert "violated-policies" not in problem(Reason.SCOPE_MISSING)


def test_answers__a_wait_that_never_ends_is_not_reported() -> None:
    """A request that costs more than the burst can never pass: no Retry-After, and words that say so."""
    never = Limits("600", "7", "1764000060", "")
    assert "retry-after" not in dict(denial_headers(Reason.RATE_LIMITED, "id", never, STYLE))
    detail = problem(Reason.RATE_LIMITED, never)["detail"]
    assert detail.startswith("This request costs more than a full burst, so waiting does not help.")


def test_problem_body__says_that_the_limit_is_a_share() -> None:
    """While only a share is granted, the lower limit is not shown as the integration's own."""
    share = Limits("200", "0", "1764000060", "2", is_share=True)
    detail = problem(Reason.RATE_LIMITED, share)["detail"]
    assert "shared limits are unavailable" in detail
    assert "200 requests per minute" in detail
    assert "Retry in 2 s" in detail


@pytest.mark.parametrize("policy", FailPolicy)
def test_fallback_headers__mark_what_the_store_did_not_decide(policy: FailPolicy) -> None:
    """One header with the policy's word; none on an ordinary answer."""
    assert fallback_headers(Fallback(policy, 5)) == [("x-ratelimit-fallback", policy.value)]
    assert fallback_headers(None) == []


def test_problem_body__bad_keys_get_one_text() -> None:
    """Malformed, unknown and expired keys: the same bytes."""
    faults = (Reason.MALFORMED_CREDENTIAL, Reason.UNKNOWN_CREDENTIAL, Reason.EXPIRED_CREDENTIAL)
    assert len({problem_body(reason, Evaluation(reason), "id", None, STYLE) for reason in faults}) == 1

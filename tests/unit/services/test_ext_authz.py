"""Envoy's Check, from the bytes of a request to the bytes of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from google.protobuf.json_format import MessageToDict

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.credential_sources import IDENTITY_HEADERS
from sidecar.domain.decisions import Reason
from sidecar.domain.integrations import Status
from sidecar.domain.scopes import DEFAULT_CATEGORIES
from sidecar.rpc.calls import UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.ext_authz import ExtAuthzService
from sidecar.services.templates import TEMPLATES_PER_INTEGRATION_MAX
from sidecar.stores.protocols import StoreFault
from tests.building import (
    NOW_US,
    FakeCall,
    FixedStore,
    ManualClock,
    RecordingStore,
    make_check,
    make_decider,
    make_ext_authz,
    make_integration,
    make_key,
)

RESET = str(NOW_US // 1_000_000 + 1)
LIMITS = {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "59", "x-ratelimit-reset": RESET}


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


@pytest.fixture
def service(key: NewApiKey) -> ExtAuthzService:
    """The service over 'acme', which may read orders sixty times a minute."""
    return make_ext_authz(make_integration(key))


def check(service: ExtAuthzService, message: bytes) -> Any:
    """The answer to *message*, which must come at once."""
    answer = service.check(message, FakeCall())
    assert answer is not None
    return CheckResponse.FromString(answer)


def as_dict(options: Any) -> dict[str, str]:
    """Header options by name; each name once, each replacing what is there."""
    assert {option.append_action for option in options} <= {HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD}
    headers = {option.header.key: option.header.value for option in options}
    assert len(headers) == len(options)
    return headers


def metadata(response: Any) -> dict[str, str]:
    """The dynamic metadata for Envoy's access log."""
    values: dict[str, str] = MessageToDict(response.dynamic_metadata)
    return values


def denied(response: Any) -> tuple[int, int, dict[str, str], dict[str, Any]]:
    """Code, HTTP status, headers and problem of a denial."""
    assert response.HasField("denied_response")
    denial = response.denied_response
    return response.status.code, denial.status.code, as_dict(denial.headers), json.loads(denial.body)


def test_methods__are_envoys_check(service: ExtAuthzService) -> None:
    """The service is bound under the path that Envoy calls."""
    assert service.methods() == (UnaryMethod("/envoy.service.auth.v3.Authorization/Check", service.check),)


def test_check__allows(service: ExtAuthzService, key: NewApiKey) -> None:
    """The upstream gets the identity and loses the key; the client gets its limits."""
    response = check(service, make_check(key.api_key))
    assert response.status.code == 0
    assert response.HasField("ok_response")
    allowed = response.ok_response
    decision_id = metadata(response)["decision_id"]
    assert as_dict(allowed.headers) == {
        "x-integration-id": "acme",
        "x-integration-name": "Acme GmbH",
        "x-credential-id": key.credential_id,
        "x-decision-id": decision_id,
    }
    assert list(allowed.headers_to_remove) == ["x-api-key"]
    assert as_dict(allowed.response_headers_to_add) == LIMITS
    assert metadata(response) == {
        "decision_id": decision_id,
        "verdict": "ALLOW",
        "reason": "ok",
        "integration": "acme",
        "credential": key.credential_id,
    }


def test_check__a_bearer_token_is_taken_from_the_upstream(service: ExtAuthzService, key: NewApiKey) -> None:
    """Whichever header carried the key is removed."""
    response = check(service, make_check(headers={"authorization": f"Bearer {key.api_key}"}))
    assert list(response.ok_response.headers_to_remove) == ["authorization"]


def test_check__identity_headers_are_never_removed(service: ExtAuthzService, key: NewApiKey) -> None:
    """Envoy removes last, so a name that is set and removed would be lost."""
    allowed = check(service, make_check(key.api_key)).ok_response
    assert set(as_dict(allowed.headers)) == set(IDENTITY_HEADERS)
    assert not set(IDENTITY_HEADERS) & set(allowed.headers_to_remove)


DENIALS: list[tuple[Reason, dict[str, Any], dict[str, Any], int, int, str]] = [
    (Reason.MISSING_CREDENTIAL, {}, {"api_key": None}, 16, 403, "API key missing"),
    (Reason.MALFORMED_CREDENTIAL, {}, {"api_key": "junk"}, 16, 403, "API key not accepted"),
    (Reason.UNKNOWN_CREDENTIAL, {}, {"api_key": make_key().api_key}, 16, 403, "API key not accepted"),
    (Reason.EXPIRED_CREDENTIAL, {"expires_at_us": 1}, {}, 16, 403, "API key not accepted"),
    (Reason.INTEGRATION_SUSPENDED, {"status": Status.SUSPENDED}, {}, 7, 403, "Integration suspended"),
    (Reason.IP_NOT_ALLOWED, {"allowlist": ["10.0.0.0/8"]}, {}, 7, 403, "Address not allowed"),
    (Reason.PATH_REFUSED, {}, {"path": "/v1//orders"}, 7, 403, "Path refused"),
    (Reason.SCOPE_MISSING, {}, {"path": "/v1/finance/1"}, 7, 403, "Scope missing"),
]


@pytest.mark.parametrize(
    ("reason", "record", "request_fields", "code", "http_status", "title"),
    DENIALS,
    ids=[row[0].label for row in DENIALS],
)
def test_check__denies_with_403(
    key: NewApiKey,
    reason: Reason,
    record: dict[str, Any],
    request_fields: dict[str, Any],
    code: int,
    http_status: int,
    title: str,
) -> None:
    """Each row of the answers: code, status, headers, problem and metadata; limits for known callers only."""
    service = make_ext_authz(make_integration(key, **record))
    response = check(service, make_check(**{"api_key": key.api_key, **request_fields}))
    is_known = not reason.is_credential_fault
    decision_id = metadata(response)["decision_id"]
    limits = {**LIMITS, "x-ratelimit-remaining": "60", "x-ratelimit-reset": str(NOW_US // 1_000_000)}
    assert denied(response) == (
        code,
        http_status,
        {
            **(limits if is_known else {}),
            "content-type": "application/problem+json",
            "cache-control": "no-store",
            "x-decision-id": decision_id,
            "x-auth-reason": reason.public_label,
        },
        {
            "type": f"urn:sidecar:problem:{reason.public_label}",
            "title": title,
            "status": http_status,
            "detail": denied(response)[3]["detail"],
            "reason": reason.public_label,
            "decision_id": decision_id,
        },
    )
    assert metadata(response) == {
        "decision_id": decision_id,
        "verdict": "DENY_403",
        "reason": reason.label,
        "integration": "acme" if is_known else "",
        "credential": key.credential_id if is_known else "",
    }


def test_check__denies_with_429(key: NewApiKey) -> None:
    """The take beyond the burst: limits, the wait for the next token, and when the burst is back."""
    clock = ManualClock()
    service = make_ext_authz(make_integration(key, rate_limit_rpm=6, burst=2), clock=clock)
    for _ in range(2):
        assert check(service, make_check(key.api_key)).status.code == 0
    clock.advance(0.5)
    response = check(service, make_check(key.api_key))
    code, http_status, headers, problem = denied(response)
    assert (code, http_status) == (8, 429)
    assert headers == {
        "x-ratelimit-limit": "6",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(NOW_US // 1_000_000 + 20),
        "retry-after": "10",
        "content-type": "application/problem+json",
        "cache-control": "no-store",
        "x-decision-id": problem["decision_id"],
        "x-auth-reason": "rate_limited",
    }
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert problem["violated-policies"] == ["rpm"]
    assert "6 requests per minute are allowed; retry in 10 s." in problem["detail"]
    assert metadata(response)["verdict"] == "DENY_429"
    clock.advance(9.5)
    assert check(service, make_check(key.api_key)).status.code == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (StoreFault.UNAVAILABLE, Reason.STORE_UNAVAILABLE),
        (StoreFault.TIMEOUT, Reason.STORE_UNAVAILABLE),
        (StoreFault.SUPERSEDED, Reason.STORE_UNAVAILABLE),
        (StoreFault.OVERLOADED, Reason.OVERLOADED),
    ],
)
def test_check__a_store_that_fails_is_a_denial_with_503(
    key: NewApiKey, fault: StoreFault, reason: Reason
) -> None:
    """Fail closed by a whole denial, never by a gRPC error: Envoy may let those through."""
    service = make_ext_authz(make_integration(key), store=FixedStore(fault))
    for _ in range(2):
        code, http_status, headers, problem = denied(check(service, make_check(key.api_key)))
        assert (code, http_status, problem["status"]) == (14, 503, 503)
        assert headers["retry-after"] == "1"
        assert headers["x-auth-reason"] == problem["reason"] == reason.label
        assert not [name for name in headers if name.startswith("x-ratelimit")]


def test_check__a_refusal_stays_what_it_is_when_the_store_fails(key: NewApiKey) -> None:
    """A caller without access gets the reason, without limits."""
    service = make_ext_authz(make_integration(key), store=FixedStore())
    code, http_status, headers, problem = denied(
        check(service, make_check(key.api_key, path="/v1/finance/1"))
    )
    assert (code, http_status, problem["reason"]) == (7, 403, "scope_missing")
    assert "x-ratelimit-limit" not in headers


def test_check__a_refused_request_consumes_nothing(service: ExtAuthzService, key: NewApiKey) -> None:
    """A 403 shows the limits and leaves the bucket as it is."""
    for _ in range(100):
        check(service, make_check(key.api_key, path="/v1/finance/1"))
    allowed = check(service, make_check(key.api_key)).ok_response
    assert as_dict(allowed.response_headers_to_add) == LIMITS


def test_check__401_for_unknown_callers_if_so_configured(key: NewApiKey) -> None:
    """The status and WWW-Authenticate change for credential faults, and for nothing else."""
    service = make_ext_authz(make_integration(key), style=AnswerStyle(unauthenticated_status=401))
    for api_key in (None, "junk", make_key().api_key):
        code, http_status, headers, problem = denied(check(service, make_check(api_key)))
        assert (code, http_status, problem["status"]) == (16, 401, 401)
        assert headers["www-authenticate"] == 'Bearer realm="api"'
    code, http_status, headers, _ = denied(check(service, make_check(key.api_key, path="/nowhere")))
    assert (code, http_status) == (7, 403)
    assert "www-authenticate" not in headers


def test_check__ietf_headers_if_so_configured(key: NewApiKey) -> None:
    """RateLimit and RateLimit-Policy beside the X- headers; `t` only when nothing is left."""
    record = make_integration(key, rate_limit_rpm=6, burst=2)
    service = make_ext_authz(record, style=AnswerStyle(ietf_headers=True))
    first = as_dict(check(service, make_check(key.api_key)).ok_response.response_headers_to_add)
    last = as_dict(check(service, make_check(key.api_key)).ok_response.response_headers_to_add)
    refused = denied(check(service, make_check(key.api_key)))[2]
    assert {headers["ratelimit-policy"] for headers in (first, last, refused)} == {'"rpm";q=6;w=60'}
    assert first["ratelimit"] == '"rpm";r=1'
    assert last["ratelimit"] == refused["ratelimit"] == '"rpm";r=0;t=10'


def public_part(response: Any) -> tuple[int, dict[str, str], str, int]:
    """What a client sees of a denial, but for its own decision id."""
    denial = response.denied_response
    headers = as_dict(denial.headers)
    decision_id = headers.pop("x-decision-id")
    return denial.status.code, headers, denial.body.replace(decision_id, "<id>"), len(denial.body)


def test_check__bad_keys_cannot_be_reported_apart(key: NewApiKey) -> None:
    """A mistyped, doubled, unknown, forged or expired key gets one text of one length."""
    service = make_ext_authz(make_integration(key, expires_at_us=1))
    bad_keys = [
        "junk",
        f"{key.api_key},{key.api_key}",
        key.api_key[:-1] + "!",
        make_key().api_key,
        key.api_key,
    ]
    answers = [public_part(check(service, make_check(api_key))) for api_key in bad_keys]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", b"%(key)s")],
        [("X-API-Key", b"%(key)s")],
        [("x-api-key", b""), ("authorization", b"Bearer %(key)s")],
    ],
)
def test_check__headers_apart(
    service: ExtAuthzService, key: NewApiKey, headers: list[tuple[str, bytes]]
) -> None:
    """With encode_raw_headers Envoy sends a list of names and bytes instead of a map."""
    raw = [(name, value.replace(b"%(key)s", key.api_key.encode())) for name, value in headers]
    assert check(service, make_check(raw_headers=raw)).status.code == 0


@pytest.mark.parametrize("names", [("x-api-key", "x-api-key"), ("x-api-key", "X-Api-Key")])
def test_check__a_repeated_key_among_headers_apart(
    service: ExtAuthzService, key: NewApiKey, names: tuple[str, str]
) -> None:
    """Two key headers stay two keys, whatever their case, and are refused; the same key twice is one."""
    for second, reason in ((make_key().api_key, "malformed_credential"), (key.api_key, "ok")):
        headers = list(zip(names, (key.api_key.encode(), second.encode()), strict=True))
        assert metadata(check(service, make_check(raw_headers=headers)))["reason"] == reason


def test_check__bytes_that_are_no_utf8_in_headers_apart(service: ExtAuthzService) -> None:
    """Any byte may be in a raw header."""
    message = make_check(raw_headers=[("x-api-key", b"\xff\xfe\x00"), ("cookie", bytes(range(128, 256)))])
    assert metadata(check(service, message))["reason"] == "malformed_credential"


def test_check__a_repeated_key_joined_by_envoy(service: ExtAuthzService, key: NewApiKey) -> None:
    """Envoy joins repeats with ','; a key never holds one. The client learns that it sent two."""
    response = check(service, make_check(f"{key.api_key},{make_key().api_key}"))
    assert metadata(response)["reason"] == "malformed_credential"
    problem = json.loads(response.denied_response.body)
    assert (problem["reason"], problem["detail"][:40]) == (
        "unknown_credential", "The request has two different API keys. ",
    )  # fmt: skip
    assert metadata(check(service, make_check(f"{key.api_key},{key.api_key}")))["reason"] == "ok"


def test_check__each_header_that_carried_the_key_is_removed(service: ExtAuthzService, key: NewApiKey) -> None:
    """And no other: the user's own token is the upstream's."""
    twice = check(service, make_check(key.api_key, headers={"authorization": f"Bearer {key.api_key}"}))
    assert list(twice.ok_response.headers_to_remove) == ["x-api-key", "authorization"]
    beside = check(service, make_check(key.api_key, headers={"authorization": "Bearer eyJh.eyJz.c2ln"}))
    assert list(beside.ok_response.headers_to_remove) == ["x-api-key"]


def test_check__an_empty_request(service: ExtAuthzService) -> None:
    """No bytes at all are a CheckRequest without a key."""
    assert metadata(check(service, b""))["reason"] == "missing_credential"


def test_check__an_empty_path(service: ExtAuthzService, key: NewApiKey) -> None:
    """A known caller without a path is refused, not crashed on."""
    assert metadata(check(service, make_check(key.api_key, path="")))["reason"] == "path_refused"


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05abc", b"garbage", b"\x0a\x02\x22\xff"])
def test_check__garbage_is_an_rpc_error(service: ExtAuthzService, message: bytes) -> None:
    """What is no CheckRequest ends the call INTERNAL, without a word of the bytes."""
    with pytest.raises(RpcError) as failed:
        service.check(message, FakeCall())
    assert (failed.value.code, failed.value.detail) == (
        StatusCode.INTERNAL,
        "the message is not a CheckRequest",
    )


def test_check__the_proxy_s_route_may_ask_for_a_scope(service: ExtAuthzService, key: NewApiKey) -> None:
    """`context_extensions.scope` takes the place of the route table."""
    assert check(service, make_check(key.api_key, path="/anything", scope="orders:read")).status.code == 0
    refused = check(service, make_check(key.api_key, scope="finance:write"))
    assert "the scope finance:write" in denied(refused)[3]["detail"]


def test_check__a_refused_address_is_named(key: NewApiKey) -> None:
    """The developer sees which address the platform saw, each time the one of that request."""
    service = make_ext_authz(make_integration(key, allowlist=["10.0.0.0/8"]))
    for peer, text in (
        ("2001:db8::1", "from 2001:db8::1 are"),
        ("192.0.2.1", "from 192.0.2.1 are"),
        ("", "the peer of the proxy: '' is not an IP address: the text is empty"),
    ):
        assert text in denied(check(service, make_check(key.api_key, peer=peer)))[3]["detail"]


def test_check__an_answer_may_come_late(key: NewApiKey) -> None:
    """While the store is asked nothing is answered; its outcome is then replied on the call, once."""
    store = RecordingStore()
    service = make_ext_authz(make_integration(key), store=store)
    call = FakeCall()
    assert service.check(make_check(key.api_key), call) is None
    assert call.replies == []
    store.answer(Taken(1, 59, 0, NOW_US + 1_000_000))
    assert [
        as_dict(CheckResponse.FromString(reply).ok_response.response_headers_to_add) for reply in call.replies
    ] == [LIMITS]


def test_check__a_late_fault_is_a_denial(key: NewApiKey) -> None:
    """A trip that fails ends in the same whole denial."""
    store = RecordingStore()
    service = make_ext_authz(make_integration(key), store=store)
    call = FakeCall()
    service.check(make_check(key.api_key), call)
    store.answer(StoreFault.TIMEOUT)
    assert [denied(CheckResponse.FromString(reply))[:2] for reply in call.replies] == [(14, 503)]
    assert call.failures == []


def test_check__late_answers_find_their_calls(key: NewApiKey) -> None:
    """Whatever the order of the outcomes, each call gets its own."""
    store = RecordingStore()
    service = make_ext_authz(make_integration(key), store=store)
    calls = [FakeCall() for _ in range(3)]
    for call in calls:
        service.check(make_check(key.api_key), call)
    for index in (2, 0, 0):
        store.answer(Taken(1, index, 0, NOW_US), index)
    left = [
        as_dict(CheckResponse.FromString(call.replies[0]).ok_response.response_headers_to_add)[
            "x-ratelimit-remaining"
        ]
        for call in calls
    ]
    assert left == ["0", "0", "2"]


def test_render__two_styles_over_one_registry(key: NewApiKey) -> None:
    """Each service answers in its own style, although both render for the same compiled integration."""
    decider = make_decider(make_integration(key))
    plain = ExtAuthzService(decider, AnswerStyle())
    ietf = ExtAuthzService(decider, AnswerStyle(ietf_headers=True))
    for service, expected in ((plain, False), (ietf, True), (plain, False)):
        headers = as_dict(check(service, make_check(key.api_key)).ok_response.response_headers_to_add)
        assert ("ratelimit" in headers) == expected


@pytest.mark.parametrize("now_us", [0, 5_000_000, 999_999_999_000_000, 10_000_000_000_000_000])
def test_render__whatever_the_clock_says(key: NewApiKey, now_us: int) -> None:
    """A machine whose clock is in 1970 or in 2286 gets whole answers, too."""
    clock = ManualClock(now_us)
    service = make_ext_authz(make_integration(key), clock=clock)
    for seconds in (0, 0, 9):
        clock.advance(seconds)
        headers = as_dict(check(service, make_check(key.api_key)).ok_response.response_headers_to_add)
        assert int(headers["x-ratelimit-reset"]) >= clock.now_us // 1_000_000


def test_render__templates_do_not_multiply_with_scopes(key: NewApiKey) -> None:
    """An allow is the same message whatever scope was asked for, so it is compiled once."""
    scopes = [f"{category.name}:read" for category in DEFAULT_CATEGORIES]
    decider = make_decider(make_integration(key, scopes=scopes, rate_limit_rpm=99))
    service = ExtAuthzService(decider, AnswerStyle())
    for scope in scopes:
        assert check(service, make_check(key.api_key, scope=scope)).status.code == 0
    assert len(decider.snapshot.integrations["acme"].fragments) == 1


def test_render__refusals_of_addresses_share_a_template(key: NewApiKey) -> None:
    """A flood from outside the allowlist costs one rendering for each length of an address."""
    decider = make_decider(make_integration(key, allowlist=["10.0.0.0/8"]))
    service = ExtAuthzService(decider, AnswerStyle())
    for peer in ("198.51.100.7", "203.0.113.99", "198.51.100.42"):
        problem = denied(check(service, make_check(key.api_key, peer=peer)))[3]
        assert (problem["reason"], f" {peer} " in problem["detail"]) == ("ip_not_allowed", True)
    assert len(decider.snapshot.integrations["acme"].fragments) == 2


def test_render__templates_are_bounded(key: NewApiKey) -> None:
    """However many widths, scopes and keys occur, an integration keeps a bounded number of templates."""
    clock = ManualClock()
    scopes = [f"{category.name}:{access}" for category in DEFAULT_CATEGORIES for access in ("read", "write")]
    record = make_integration(key, scopes=(), rate_limit_rpm=10_000, burst=1_000_000)
    decider = make_decider(record, clock=clock)
    service = ExtAuthzService(decider, AnswerStyle())
    fragments = decider.snapshot.integrations["acme"].fragments
    sizes = []
    for exponent in range(7, 17):
        clock.now_us = 10**exponent
        for scope in scopes:
            message = make_check(key.api_key, scope=scope)
            assert metadata(check(service, message))["reason"] in {"scope_missing", "route_misconfigured"}
            sizes.append(len(fragments))
    assert max(sizes) == TEMPLATES_PER_INTEGRATION_MAX
    assert len(sizes) > len(set(sizes))

"""What Envoy and its client are sent while `on_store_error` decides in place of the store."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from google.protobuf.json_format import MessageToDict

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.fail_policy import FailPolicy
from sidecar.services.ext_authz import ExtAuthzService
from sidecar.services.store_fallback import StoreFallback
from sidecar.stores.local_share import LocalShare
from sidecar.stores.protocols import StoreFault
from tests.building import (
    NOW_US,
    FakeCall,
    FixedStore,
    ManualClock,
    make_check,
    make_decider,
    make_integration,
    make_key,
    make_metrics,
)

RATE_LIMIT = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
MARK = "x-ratelimit-fallback"


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


def service(key: NewApiKey, policy: FailPolicy, **record: Any) -> ExtAuthzService:
    """Envoy's service over 'acme', with a store that fails and a share of one in thirty."""
    fallback = StoreFallback(make_metrics(), policy, LocalShare(ManualClock(), 30))
    store = FixedStore(StoreFault.UNAVAILABLE)
    decider = make_decider(make_integration(key, **record), store=store, fallback=fallback)
    return ExtAuthzService(decider, AnswerStyle())


def check(service: ExtAuthzService, key: NewApiKey, **request: Any) -> CheckResponse:
    """The answer to a request of 'acme'."""
    answer = service.check(make_check(key.api_key, **request), FakeCall())
    assert answer is not None
    return CheckResponse.FromString(answer)


def headers_of(response: CheckResponse) -> dict[str, str]:
    """The headers for the client."""
    if response.HasField("denied_response"):
        options = response.denied_response.headers
    else:
        options = response.ok_response.response_headers_to_add
    return {option.header.key: option.header.value for option in options}


def metadata(response: CheckResponse) -> dict[str, str]:
    """The dynamic metadata for the access log."""
    values: dict[str, str] = MessageToDict(response.dynamic_metadata)
    return values


def test_deny__is_a_503_that_is_marked(key: NewApiKey) -> None:
    """Fail closed: the client may retry in a second, and learns that no limit was checked."""
    response = check(service(key, FailPolicy.DENY), key)
    assert (response.status.code, response.denied_response.status.code) == (14, 503)
    headers = headers_of(response)
    assert (headers[MARK], headers["retry-after"]) == ("deny", "1")
    assert not RATE_LIMIT & set(headers)
    assert metadata(response)["fallback"] == "deny"
    assert json.loads(response.denied_response.body)["reason"] == "store_unavailable"


def test_allow__has_the_mark_and_no_figures(key: NewApiKey) -> None:
    """Fail open: the client gets the mark alone, the upstream its usual identity headers."""
    response = check(service(key, FailPolicy.ALLOW), key)
    assert response.status.code == 0
    assert headers_of(response) == {MARK: "allow"}
    assert {option.header.key for option in response.ok_response.headers} >= {"x-integration-id"}
    assert metadata(response)["fallback"] == "allow"
    assert metadata(response)["reason"] == "ok"


def test_local__has_the_mark_and_the_figures_of_the_share(key: NewApiKey) -> None:
    """Two of sixty requests a minute here; then a 429 that says that it is a share."""
    serving = service(key, FailPolicy.LOCAL)
    answers = [check(serving, key) for _ in range(3)]
    assert [answer.status.code for answer in answers] == [0, 0, 8]
    shown = [headers_of(answer) for answer in answers]
    assert [headers["x-ratelimit-remaining"] for headers in shown] == ["1", "0", "0"]
    assert {(headers[MARK], headers["x-ratelimit-limit"]) for headers in shown} == {("local", "2")}
    assert shown[2]["retry-after"] == "30"
    assert shown[2]["x-ratelimit-reset"] == str(NOW_US // 1_000_000 + 60)
    assert "shared limits are unavailable" in json.loads(answers[2].denied_response.body)["detail"]


@pytest.mark.parametrize("policy", FailPolicy)
def test_refusal__is_not_marked(key: NewApiKey, policy: FailPolicy) -> None:
    """A 403 comes from the registry, which needs no store: neither mark nor figures."""
    response = check(service(key, policy), key, path="/v1/finance/1")
    assert (response.denied_response.status.code, metadata(response)["reason"]) == (403, "scope_missing")
    assert not {MARK, *RATE_LIMIT} & set(headers_of(response))
    assert "fallback" not in metadata(response)


def test_answers__with_and_without_the_store_do_not_mix(key: NewApiKey) -> None:
    """Answers are rendered once and used again; those of a failing store are not used for others."""
    record = make_integration(key)
    local = LocalShare(ManualClock(), 30)
    store = FixedStore()
    taken = LocalShare(ManualClock()).take_now(make_decider(record).snapshot.integrations["acme"].buckets, 1)
    fallback = StoreFallback(make_metrics(), FailPolicy.LOCAL, local)
    decider = make_decider(record, store=store, fallback=fallback)
    serving = ExtAuthzService(decider, AnswerStyle())
    marks, limits = [], []
    assert isinstance(taken, Taken)
    for store.outcome in (StoreFault.TIMEOUT, taken, StoreFault.TIMEOUT):
        headers = headers_of(check(serving, key))
        marks.append(headers.get(MARK))
        limits.append(headers["x-ratelimit-limit"])
    local.live_sidecars = 2
    limits.append(headers_of(check(serving, key))["x-ratelimit-limit"])
    assert marks == ["local", None, "local"]
    assert limits == ["2", "60", "2", "30"]

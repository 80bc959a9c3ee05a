"""The answer to an integration about itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.decisions import Reason
from sidecar.domain.integrations import Status
from sidecar.domain.policy import Evaluation
from sidecar.domain.snapshot import CompiledIntegration
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.decider import Decider
from sidecar.services.forward_auth import ForwardAuthService
from sidecar.services.recent_refusals import INTEGRATIONS_MAX as RECENT_MAX
from sidecar.services.recent_refusals import PATH_CHARS_MAX, REFUSALS_MAX, RecentRefusals
from sidecar.services.whoami import QUOTA, CallerDescriber, DescribeCallerMethod, WhoAmI
from sidecar.stores.protocols import StoreFault
from sidecar.v1 import decision_pb2 as pb
from tests.building import (
    NOW_US,
    FakeCall,
    FixedStore,
    ManualClock,
    RecordingStore,
    make_decider,
    make_integration,
    make_key,
    make_request,
)
from tests.unit.services.test_forward_auth import PROXY, TRUSTED, ProxiedRequest

STRANGER = ("192.0.2.7", 5)


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


def make_service(key: NewApiKey, record: dict[str, Any] | None = None, **parts: Any) -> ForwardAuthService:
    """The listener's service over 'acme', with /whoami."""
    decider = make_decider(make_integration(key, **(record or {})), **parts)
    service = ForwardAuthService(decider, AnswerStyle(), TRUSTED, lambda: True)
    service.pages[b"/whoami"] = WhoAmI(CallerDescriber(decider), AnswerStyle(), service.caller_of).serve
    return service


def ask(
    service: ForwardAuthService, api_key: str, peer: tuple[str, int] = STRANGER, **headers: str
) -> ProxiedRequest:
    """Ask who *api_key* is."""
    fields = {"x-api-key": api_key, **{name.replace("_", "-"): value for name, value in headers.items()}}
    pairs = tuple((name.encode(), value.encode()) for name, value in fields.items())
    asked = ProxiedRequest(b"/whoami", pairs, peer=peer)
    service.serve(asked)
    return asked


def test_whoami__shows_what_the_integration_may_do(key: NewApiKey) -> None:
    """Scopes, limit, remaining requests, address and expiry; asking takes nothing."""
    record = {"burst": 5, "allowlist": ("192.0.2.0/24",), "expires_at_us": NOW_US + 1_000_000}
    service = make_service(key, record)
    for _ in range(3):
        asked = ask(service, key.api_key)
        assert asked.status == 200
    shown = json.loads(asked.body)
    assert shown["integration"] == {"id": "acme", "name": "Acme GmbH", "status": "active"}
    assert shown["credential"]["id"] == key.credential_id
    assert shown["credential"]["expires_at"].endswith("Z")
    assert shown["scopes"] == ["orders:read"]
    expected = {"limit_rpm": 60, "burst": 5, "remaining": 5}
    assert expected.items() <= shown["rate_limit"].items()
    address = {"address": "192.0.2.7", "is_allowlist_enabled": True, "is_allowed": True}
    assert shown["client_address"] == address
    assert key.api_key not in asked.body.decode()


def test_whoami__only_a_trusted_proxy_states_the_address(key: NewApiKey) -> None:
    """A caller that asks directly cannot claim another address."""
    service = make_service(key, {"allowlist": ("198.51.100.0/24",)})
    for peer, is_allowed in ((PROXY, True), (STRANGER, False)):
        shown = json.loads(ask(service, key.api_key, peer, x_forwarded_for="198.51.100.9").body)
        assert shown["client_address"]["is_allowed"] is is_allowed


def test_whoami__a_suspended_integration_sees_its_status(key: NewApiKey) -> None:
    """It may still ask, so that its developer learns why every call is refused."""
    shown = json.loads(ask(make_service(key, {"status": Status.SUSPENDED}), key.api_key).body)
    assert shown["integration"]["status"] == "suspended"
    assert shown["client_address"]["is_allowed"] is None


def test_whoami__an_unknown_key_is_refused_as_by_the_api(key: NewApiKey) -> None:
    """With the same reason."""
    service = make_service(key)
    for api_key in ("", "sck_wrong", make_key().api_key):
        asked = ask(service, api_key)
        assert asked.status == 403
        assert json.loads(asked.body)["reason"] == ("unknown_credential" if api_key else "missing_credential")


def test_whoami__has_a_limit_of_its_own(key: NewApiKey) -> None:
    """So it is no way to load the store."""
    service = make_service(key)
    statuses = [ask(service, key.api_key).status for _ in range(QUOTA.burst + 1)]
    assert statuses == [200] * QUOTA.burst + [429]
    assert ask(service, key.api_key).fields["retry-after"] == "1"


def test_whoami__waits_for_the_shared_store(key: NewApiKey) -> None:
    """It peeks; without an answer of the store the figures are null."""
    store = RecordingStore()
    asked = ask(make_service(key, store=store), key.api_key)
    assert asked.encoded == []
    assert store.pending[0].asked == 0
    store.answer(Taken(0, 7, 0, NOW_US))
    assert json.loads(asked.body)["rate_limit"]["remaining"] == 7
    asked = ask(make_service(key, store=FixedStore(StoreFault.UNAVAILABLE)), key.api_key)
    assert json.loads(asked.body)["rate_limit"]["remaining"] is None


def refuse(decider: Decider, key: NewApiKey, path: str) -> None:
    """Have one request of *key* refused, for want of a route."""
    decider.decide(make_request(key.api_key, path=path), None, lambda *_: None, None)


def test_whoami__shows_the_latest_refusals_with_their_reasons(key: NewApiKey) -> None:
    """The last 20 of this integration alone, the latest first, without queries."""
    other = make_key()
    clock = ManualClock()
    decider = make_decider(make_integration(key), make_integration(other, id="other"), clock=clock)
    describer = CallerDescriber(decider)
    for number in range(REFUSALS_MAX + 5):
        clock.advance(seconds=1)
        refuse(decider, key, f"/nowhere/{number}?token=hush")
    refuse(decider, other, "/other")
    shown: Any = describer.describe(make_request(key.api_key), lambda described: None)
    latest = shown["refusals"]["latest"]
    assert [refusal["path"] for refusal in latest] == [f"/nowhere/{n}" for n in range(24, 4, -1)]
    assert latest[0] | {"decision_id": ""} == {
        "at": "2025-11-24T16:00:25Z",
        "reason": "route_unknown",
        "status": 403,
        "method": "GET",
        "path": "/nowhere/24",
        "decision_id": "",
    }
    assert shown["refusals"]["since"] == "2025-11-24T16:00:00Z"


def test_refusals__are_bounded() -> None:
    """In integrations, refusals and the length of what a caller wrote."""
    decider = make_decider()
    refusals = RecentRefusals(NOW_US)
    for number in range(RECENT_MAX + 10):
        integration = CompiledIntegration(make_integration(id=f"i{number}"))
        decision = decider.refuse(Reason.SCOPE_MISSING, "")
        decision.evaluation = Evaluation(Reason.SCOPE_MISSING, integration)
        refusals.note(make_request(path="/" + "x" * 8_000), decision, NOW_US)
    assert list(refusals.of("i9")) == []
    [refusal] = refusals.of(f"i{RECENT_MAX + 9}")
    assert len(refusal.path) == PATH_CHARS_MAX


class Native:
    """The native method over 'acme'."""

    def __init__(self, key: NewApiKey, **parts: Any) -> None:
        """Serve a decider made of *parts*."""
        self.decider = make_decider(make_integration(key), **parts)
        self._method = DescribeCallerMethod(CallerDescriber(self.decider), self.decider, AnswerStyle())

    def ask(self, call: FakeCall | None = None, **fields: Any) -> pb.DescribeCallerResponse | None:
        """The answer to a request with *fields*; None = it comes later."""
        request = pb.DescribeCallerRequest(**fields).SerializeToString()
        answer = self._method.handle(request, FakeCall() if call is None else call)
        return None if answer is None else pb.DescribeCallerResponse.FromString(answer)


def test_describe_caller__answers_what_whoami_answers(key: NewApiKey) -> None:
    """Key in the message, in its headers, or in the metadata of the call: one content."""
    native = Native(key)
    refuse(native.decider, key, "/nowhere")
    expected = native.ask(api_key=key.api_key)
    assert expected is not None
    assert expected.integration.id == "acme"
    assert list(expected.scopes) == ["orders:read"]
    assert (expected.rate_limit.limit_rpm, expected.rate_limit.remaining) == (60, 60)
    assert expected.rate_limit.reset_at.seconds == NOW_US // 1_000_000
    assert [refusal.reason for refusal in expected.refusals.latest] == ["route_unknown"]
    assert not expected.credential.HasField("expires_at")
    assert native.ask(headers={"X-API-Key": key.api_key}) == expected
    assert native.ask(FakeCall(metadata={"x-api-key": key.api_key})) == expected


def test_describe_caller__refuses_unknown_callers_and_too_many_calls(key: NewApiKey) -> None:
    """With the status that a client expects and a text that says what to do."""
    native = Native(key)
    for fields in ({}, {"api_key": make_key().api_key}):
        with pytest.raises(RpcError) as refused:
            native.ask(**fields)
        assert refused.value.code is StatusCode.UNAUTHENTICATED
    with pytest.raises(RpcError) as invalid:
        native.ask(api_key=key.api_key, client_ip="here")
    assert invalid.value.code is StatusCode.INVALID_ARGUMENT
    for _ in range(QUOTA.burst):
        native.ask(api_key=key.api_key)
    with pytest.raises(RpcError) as limited:
        native.ask(api_key=key.api_key)
    assert limited.value.code is StatusCode.RESOURCE_EXHAUSTED
    assert "retry in 1 s" in limited.value.detail


def test_describe_caller__waits_for_the_shared_store(key: NewApiKey) -> None:
    """The answer comes with the peek; a store that fails leaves the figures out."""
    store = RecordingStore()
    native, call = Native(key, store=store), FakeCall()
    assert native.ask(call, api_key=key.api_key) is None
    store.answer(StoreFault.UNAVAILABLE)
    [answer] = call.replies
    assert not pb.DescribeCallerResponse.FromString(answer).rate_limit.HasField("remaining")

"""The native decision service, from the bytes of a request to the bytes of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.domain.answers import AnswerStyle, Decision
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.client_address import ClientHeader
from sidecar.domain.decision_ids import DECISION_ID_LENGTH
from sidecar.domain.decisions import Reason, Verdict
from sidecar.domain.fail_policy import FailPolicy, Fallback
from sidecar.domain.integrations import Status
from sidecar.domain.policy import Evaluation
from sidecar.domain.snapshot import Snapshot
from sidecar.rpc.calls import UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.decision_service import BATCH_REQUESTS_MAX, DecisionService, fill
from sidecar.services.whoami import DESCRIBE_CALLER
from sidecar.stores.protocols import StoreFault
from sidecar.v1 import decision_pb2 as pb
from tests.building import (
    CLIENT_IP,
    NOW_US,
    FakeCall,
    FixedStore,
    ManualClock,
    RecordingStore,
    make_decider,
    make_integration,
    make_key,
    make_policy,
)

NOW_S = NOW_US // 1_000_000
ADMITTED = Taken(1, 59, 0, NOW_US + 1_000_000)


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


def serve(
    key: NewApiKey, style: AnswerStyle | None = None, record: Any = None, **parts: Any
) -> DecisionService:
    """The service over 'acme', whose record, and the decider's parts, the arguments shape."""
    decider = make_decider(make_integration(key, **(record or {})), **parts)
    return DecisionService(decider, AnswerStyle() if style is None else style)


def ask(key: NewApiKey | None = None, **fields: Any) -> pb.DecideRequest:
    """A request that is allowed, unless *fields* say otherwise."""
    fields = {"method": "GET", "path": "/v1/orders/42", "client_ip": CLIENT_IP, **fields}
    if key is not None:
        fields.setdefault("api_key", key.api_key)
    return pb.DecideRequest(**fields)


def decide(service: DecisionService, request: pb.DecideRequest) -> pb.DecideResponse:
    """The answer to *request*, which must come at once."""
    answer = service.decide(request.SerializeToString(), FakeCall())
    assert answer is not None
    return pb.DecideResponse.FromString(answer)


def reason_of(response: pb.DecideResponse) -> str:
    """The reason of an answer by the domain's word."""
    return pb.Reason.Name(response.reason).removeprefix("REASON_").lower()


def refusal_of(service: DecisionService, request: pb.DecideRequest) -> str:
    """The detail of the INVALID_ARGUMENT that *request* ends with; nothing may have been decided."""
    with pytest.raises(RpcError) as failed:
        service.decide(request.SerializeToString(), FakeCall())
    assert failed.value.code is StatusCode.INVALID_ARGUMENT
    return failed.value.detail


@pytest.mark.parametrize(
    ("proto", "prefix", "domain"),
    [(pb.Verdict, "VERDICT_", Verdict), (pb.Reason, "REASON_", Reason)],
    ids=["Verdict", "Reason"],
)
def test_proto__enums_are_the_domain_s(proto: Any, prefix: str, domain: Any) -> None:
    """The same words, each once, in the same order; 0 is UNSPECIFIED and never a verdict."""
    assert list(proto.keys()) == [f"{prefix}UNSPECIFIED", *(f"{prefix}{member.name}" for member in domain)]
    assert proto.values() == sorted(proto.values())
    assert proto.values()[0] == 0


def test_proto__numbers_are_forever() -> None:
    """Field and enum numbers once released never change: callers compiled against them."""
    fields = {field.name: field.number for field in pb.DecideResponse.DESCRIPTOR.fields}
    assert fields == {
        "verdict": 1,
        "reason": 2,
        "decision_id": 3,
        "http_status": 4,
        "integration_id": 5,
        "credential_id": 6,
        "limit": 7,
        "remaining": 8,
        "reset_at": 9,
        "retry_after": 10,
        "headers": 11,
        "body": 12,
        "fallback": 13,
        "upstream_headers": 14,
        "removed_headers": 15,
        "would_deny": 16,
    }
    assert {field.name: field.number for field in pb.DecideRequest.DESCRIPTOR.fields} == {
        "method": 1,
        "path": 2,
        "api_key": 3,
        "headers": 4,
        "client_ip": 5,
        "scope": 6,
    }
    assert (pb.VERDICT_ALLOW, pb.VERDICT_DENY_403, pb.VERDICT_DENY_429) == (1, 2, 3)
    assert (pb.REASON_OK, pb.REASON_RATE_LIMITED, pb.REASON_URI_TOO_LONG) == (1, 10, 14)


def test_methods__are_those_of_the_proto(key: NewApiKey) -> None:
    """Each method of the service is bound under its full name."""
    service = serve(key)
    names = [
        f"/{method.containing_service.full_name}/{method.name}"
        for method in pb.DESCRIPTOR.services_by_name["DecisionService"].methods
    ]
    assert service.methods() == (
        UnaryMethod(names[0], service.decide),
        UnaryMethod(names[1], service.decide_batch),
    )
    assert names[2:] == [DESCRIBE_CALLER]
    assert names[:2] == ["/sidecar.v1.DecisionService/Decide", "/sidecar.v1.DecisionService/DecideBatch"]


def test_decide__allows(key: NewApiKey) -> None:
    """Who was admitted, what is left, and the headers for the client."""
    response = decide(serve(key), ask(key))
    assert len(response.decision_id) == DECISION_ID_LENGTH
    assert response == pb.DecideResponse(
        verdict=pb.VERDICT_ALLOW,
        reason=pb.REASON_OK,
        decision_id=response.decision_id,
        http_status=200,
        integration_id="acme",
        credential_id=key.credential_id,
        limit=60,
        remaining=59,
        reset_at=Timestamp(seconds=NOW_S + 1),
        headers={
            "x-ratelimit-limit": "60",
            "x-ratelimit-remaining": "59",
            "x-ratelimit-reset": str(NOW_S + 1),
        },
    )


def test_decide__denies_with_429(key: NewApiKey) -> None:
    """The wait in microseconds, and the whole HTTP answer for the end client."""
    clock = ManualClock()
    service = serve(key, record={"rate_limit_rpm": 7, "burst": 1}, clock=clock)
    last = decide(service, ask(key))
    assert (last.remaining, last.retry_after) == (0, Duration(seconds=8, nanos=571_429_000))
    clock.advance(us=1)
    response = decide(service, ask(key))
    assert (response.verdict, response.reason, response.http_status) == (
        pb.VERDICT_DENY_429,
        pb.REASON_RATE_LIMITED,
        429,
    )
    assert (response.limit, response.remaining) == (7, 0)
    assert response.retry_after == Duration(seconds=8, nanos=571_428_000)
    assert response.reset_at == Timestamp(seconds=NOW_S + 8, nanos=571_429_000)
    assert response.headers["retry-after"] == "9"
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.body)
    assert (problem["status"], problem["decision_id"]) == (429, response.decision_id)


DENIALS: list[tuple[Reason, dict[str, Any], dict[str, Any]]] = [
    (Reason.MISSING_CREDENTIAL, {}, {"api_key": ""}),
    (Reason.MALFORMED_CREDENTIAL, {}, {"api_key": "junk"}),
    (Reason.UNKNOWN_CREDENTIAL, {}, {"api_key": make_key().api_key}),
    (Reason.EXPIRED_CREDENTIAL, {"expires_at_us": 1}, {}),
    (Reason.INTEGRATION_SUSPENDED, {"status": Status.SUSPENDED}, {}),
    (Reason.IP_NOT_ALLOWED, {"allowlist": ["10.0.0.0/8"]}, {}),
    (Reason.PATH_REFUSED, {}, {"path": "/v1//orders"}),
    (Reason.SCOPE_MISSING, {}, {"path": "/v1/finance/1"}),
    (Reason.ROUTE_UNKNOWN, {}, {"path": "/nowhere"}),
    (Reason.METHOD_NOT_ALLOWED, {}, {"method": "DELETE"}),
    (Reason.URI_TOO_LONG, {}, {"path": "/v1/orders/".ljust(8_193, "4")}),
]


@pytest.mark.parametrize(
    ("reason", "record", "fields"), DENIALS, ids=lambda value: getattr(value, "label", None)
)
def test_decide__denies_with_403(
    key: NewApiKey, reason: Reason, record: dict[str, Any], fields: dict[str, Any]
) -> None:
    """The exact reason for the caller, the public one for its client; limits for known callers only."""
    response = decide(serve(key, record=record), ask(key, **fields))
    is_known = not reason.is_credential_fault
    assert reason_of(response) == reason.label
    assert (response.verdict, response.http_status) == (pb.VERDICT_DENY_403, reason.http_status)
    assert (response.integration_id, response.limit, response.remaining) == (
        ("acme", 60, 60) if is_known else ("", 0, 0)
    )
    assert bool(response.credential_id) == response.HasField("reset_at") == is_known
    assert not response.HasField("retry_after")
    assert response.headers["x-auth-reason"] == json.loads(response.body)["reason"] == reason.public_label
    assert ("x-ratelimit-limit" in response.headers) == is_known


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(StoreFault.TIMEOUT, pb.REASON_STORE_UNAVAILABLE), (StoreFault.OVERLOADED, pb.REASON_OVERLOADED)],
)
def test_decide__a_store_that_fails(key: NewApiKey, fault: StoreFault, reason: Any) -> None:
    """A denial with 503 and without figures, never a gRPC error."""
    response = decide(serve(key, store=FixedStore(fault)), ask(key))
    assert (response.verdict, response.reason, response.http_status) == (pb.VERDICT_DENY_403, reason, 503)
    assert (response.integration_id, response.limit) == ("acme", 0)
    assert not response.HasField("reset_at") and not response.HasField("retry_after")
    assert response.headers["retry-after"] == "1"


def test_decide__401_if_so_configured(key: NewApiKey) -> None:
    """The style of the configuration holds here as well."""
    response = decide(serve(key, AnswerStyle(unauthenticated_status=401, ietf_headers=True)), ask())
    assert response.http_status == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="api"'
    allowed = decide(serve(key, AnswerStyle(ietf_headers=True)), ask(key))
    assert allowed.headers["ratelimit-policy"] == '"rpm";q=60;w=60'


def test_decide__a_wait_that_never_ends_is_left_out(key: NewApiKey) -> None:
    """A take that can never pass has no retry_after: no number would be true."""
    response = decide(serve(key, store=FixedStore(Taken(0, 1, -1, NOW_US))), ask(key))
    assert response.verdict == pb.VERDICT_DENY_429
    assert not response.HasField("retry_after")
    assert "retry-after" not in response.headers


def test_fill__an_allow_without_a_look_at_the_bucket(key: NewApiKey) -> None:
    """Where a configuration lets requests pass while the store fails, there are no figures to report."""
    credential = Snapshot.compile([make_integration(key)]).credentials[key.credential_id]
    evaluation = Evaluation(Reason.OK, credential.integration, credential)
    response = pb.DecideResponse()
    fill(response, Decision("d1", Reason.OK, evaluation, None, Fallback(FailPolicy.ALLOW)), AnswerStyle())
    assert response == pb.DecideResponse(
        verdict=pb.VERDICT_ALLOW,
        reason=pb.REASON_OK,
        decision_id="d1",
        http_status=200,
        integration_id="acme",
        credential_id=key.credential_id,
        fallback=pb.FALLBACK_ALLOW,
        headers={"x-ratelimit-fallback": "allow"},
    )


def test_fill__figures_of_a_share(key: NewApiKey) -> None:
    """From a local bucket all figures are those of this sidecar's share, and the answer says so."""
    credential = Snapshot.compile([make_integration(key)]).credentials[key.credential_id]
    evaluation = Evaluation(Reason.OK, credential.integration, credential)
    taken, mark = Taken(1, 7, 0, NOW_US), Fallback(FailPolicy.LOCAL, 20)
    response = pb.DecideResponse()
    fill(response, Decision("d1", Reason.OK, evaluation, taken, mark), AnswerStyle())
    assert (response.limit, response.remaining, response.fallback) == (20, 7, pb.FALLBACK_LOCAL)
    assert dict(response.headers) == {
        "x-ratelimit-fallback": "local",
        "x-ratelimit-limit": "20",
        "x-ratelimit-remaining": "7",
        "x-ratelimit-reset": str(NOW_US // 1_000_000),
    }


def test_proto__fallbacks_are_the_domain_s() -> None:
    """The same words in the same order; 0 is that of every answer that the store has given."""
    names = ["NONE", *(policy.name for policy in FailPolicy)]
    assert pb.Fallback.items() == [(f"FALLBACK_{name}", number) for number, name in enumerate(names)]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "%s"},
        {"X-API-Key": "%s"},
        {"Authorization": "Bearer %s", "Cookie": "a=b", "x-api-key": ""},
    ],
)
def test_decide__a_key_in_headers(key: NewApiKey, headers: dict[str, str]) -> None:
    """The configured sources are looked into, whatever the case of the names."""
    headers = {name: value.replace("%s", key.api_key) for name, value in headers.items()}
    response = decide(serve(key), ask(headers=headers))
    assert reason_of(response) == "ok"
    carriers = [name.lower() for name, value in headers.items() if key.api_key in value]
    assert sorted(response.removed_headers) == sorted(set(carriers))
    assert response.upstream_headers == {
        "x-integration-id": "acme",
        "x-integration-name": "Acme GmbH",
        "x-credential-id": key.credential_id,
        "x-decision-id": response.decision_id,
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "%s,%o"},
        {"x-api-key": "%s", "X-API-KEY": "%o"},
        {"x-api-key": "%s", "authorization": "Bearer %o"},
    ],
)
def test_decide__two_keys_in_headers(key: NewApiKey, headers: dict[str, str]) -> None:
    """As for proxies: which of them counts is unclear, so none does."""
    headers = {name: value.replace("%s", key.api_key, 1) for name, value in headers.items()}
    other = make_key().api_key
    headers = {name: value.replace("%o", other) for name, value in headers.items()}
    assert reason_of(decide(serve(key), ask(headers=headers))) == "malformed_credential"


@pytest.mark.parametrize(
    ("client_ip", "expected"),
    [
        (CLIENT_IP, "ok"),
        (f"::ffff:{CLIENT_IP}", "ok"),
        ("10.0.0.1", "ip_not_allowed"),
        ("2001:db8::1", "ip_not_allowed"),
        ("", "ip_not_allowed"),
    ],
)
def test_decide__the_client_is_who_the_caller_says(key: NewApiKey, client_ip: str, expected: str) -> None:
    """The stated address is held against the allowlist; none stated is unknown, and refused."""
    service = serve(key, record={"allowlist": ["198.51.100.0/24"]})
    assert reason_of(decide(service, ask(key, client_ip=client_ip))) == expected


def test_decide__no_header_names_the_client(key: NewApiKey) -> None:
    """The rule for proxies is not applied: here the header would be the end client's own claim."""
    policy = make_policy(client_address=ClientHeader("x-client-ip"))
    service = serve(key, record={"allowlist": ["198.51.100.0/24"]}, policy=policy)
    headers = {"x-api-key": key.api_key, "x-client-ip": CLIENT_IP}
    assert reason_of(decide(service, ask(headers=headers, client_ip=""))) == "ip_not_allowed"
    assert reason_of(decide(service, ask(headers=headers, client_ip=CLIENT_IP))) == "ok"


def test_decide__a_scope_instead_of_a_route(key: NewApiKey) -> None:
    """A caller that speaks no HTTP asks for the scope alone."""
    service = serve(key)
    assert reason_of(decide(service, pb.DecideRequest(api_key=key.api_key, scope="orders:read"))) == "ok"
    refused = decide(service, pb.DecideRequest(api_key=key.api_key, scope="finance:write"))
    assert reason_of(refused) == "scope_missing"
    assert "the scope finance:write" in json.loads(refused.body)["detail"]


def test_decide__a_scope_does_not_excuse_an_odd_path(key: NewApiKey) -> None:
    """A path that is stated is looked at."""
    response = decide(serve(key), ask(key, path="/../secret", scope="orders:read"))
    assert reason_of(response) == "path_refused"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"method": ""}, "method: is empty; set it"),
        ({"path": ""}, "path: is empty; set it"),
        ({"client_ip": "localhost"}, "client_ip: 'localhost' is not an IP address"),
        (
            {"client_ip": "unknown"},
            "client_ip: 'unknown' is not an IP address: the proxy does not know the address",
        ),
        ({"headers": {"cookie": "a"}}, "headers: must be empty when api_key is set"),
        ({"scope": "orders"}, "scope: must be 'category:read' or 'category:write'"),
        (
            {"scope": "invoices:read"},
            "scope: must be 'category:read' or 'category:write' of a configured category",
        ),
    ],
)
def test_decide__invalid_arguments_name_their_field(
    key: NewApiKey, fields: dict[str, Any], expected: str
) -> None:
    """What only the caller can have got wrong ends the call, with the field first and the remedy after."""
    store = RecordingStore()
    assert refusal_of(serve(key, store=store), ask(key, **fields)).startswith(expected)
    assert store.tried == []


@pytest.mark.parametrize("message", [b"\xff", b"garbage", b"\x0a\x02\xc3\x28"])
def test_decide__garbage_is_an_rpc_error(key: NewApiKey, message: bytes) -> None:
    """What is no message of ours ends the call INTERNAL, without a word of the bytes."""
    service = serve(key)
    for handle, name in ((service.decide, "DecideRequest"), (service.decide_batch, "DecideBatchRequest")):
        with pytest.raises(RpcError) as failed:
            handle(message, FakeCall())
        assert (failed.value.code, failed.value.detail) == (
            StatusCode.INTERNAL,
            f"the message is not a {name}",
        )


def test_decide__an_answer_may_come_late(key: NewApiKey) -> None:
    """The store's outcome is replied on the call, once."""
    store, call = RecordingStore(), FakeCall()
    service = serve(key, store=store)
    assert service.decide(ask(key).SerializeToString(), call) is None
    assert call.replies == []
    store.answer(ADMITTED)
    assert [pb.DecideResponse.FromString(reply).remaining for reply in call.replies] == [59]


def test_decide__the_caller_s_deadline_reaches_the_store(
    key: NewApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a single request and of each in a batch."""
    monkeypatch.setattr("sidecar.services.decider.monotonic", lambda: 100.0)
    store = RecordingStore()
    service = serve(key, store=store)
    service.decide(ask(key).SerializeToString(), FakeCall(deadline_s=100.01))
    service.decide_batch(batch(ask(key)), FakeCall(deadline_s=100.02))
    assert [take.timeout_s for take in store.pending] == pytest.approx([0.009, 0.018])


def batch(*requests: pb.DecideRequest) -> bytes:
    """A serialized batch."""
    return pb.DecideBatchRequest(requests=requests).SerializeToString()


def answers(message: bytes | None) -> list[pb.DecideResponse]:
    """The answers in a serialized batch."""
    assert message is not None
    return list(pb.DecideBatchResponse.FromString(message).responses)


def test_decide_batch__answers_in_order(key: NewApiKey) -> None:
    """Each request gets what it would have got alone, one after another; a denial stops nobody."""
    service = serve(key, record={"burst": 2})
    requests = [ask(key), ask(), ask(key, path="/v1/finance/1"), ask(key), ask(key), ask(key, client_ip="")]
    responses = answers(service.decide_batch(batch(*requests), FakeCall()))
    assert [reason_of(response) for response in responses] == [
        "ok", "missing_credential", "scope_missing", "ok", "rate_limited", "rate_limited",
    ]  # fmt: skip
    assert [response.remaining for response in responses] == [1, 0, 1, 0, 0, 0]
    assert len({response.decision_id for response in responses}) == 6


def test_decide_batch__of_nothing(key: NewApiKey) -> None:
    """An empty batch is answered by an empty one."""
    assert answers(serve(key).decide_batch(b"", FakeCall())) == []


def test_decide_batch__is_bounded(key: NewApiKey) -> None:
    """256 requests pass; one more fails the call before anything is decided, and says what to do."""
    store = RecordingStore()
    full = batch(*BATCH_REQUESTS_MAX * [ask(key)])
    assert len(answers(serve(key).decide_batch(full, FakeCall()))) == 256
    with pytest.raises(RpcError) as failed:
        serve(key, store=store).decide_batch(batch(*(BATCH_REQUESTS_MAX + 1) * [ask(key)]), FakeCall())
    assert failed.value.code is StatusCode.INVALID_ARGUMENT
    assert failed.value.detail.startswith("requests: the call has 257 requests; at most 256")
    assert store.tried == []


def test_decide_batch__an_invalid_argument_names_its_place(key: NewApiKey) -> None:
    """The whole call fails, and nothing was taken, not even for the good ones before it."""
    store = RecordingStore()
    with pytest.raises(RpcError) as failed:
        serve(key, store=store).decide_batch(batch(ask(key), ask(key), ask(key, path="")), FakeCall())
    assert failed.value.code is StatusCode.INVALID_ARGUMENT
    assert failed.value.detail.startswith("requests[2].path: is empty; set it")
    assert store.tried == []


def test_decide_batch__late_answers_are_gathered(key: NewApiKey) -> None:
    """In whatever order the outcomes come, the call is replied to once, in order, after the last."""
    store, call = RecordingStore(), FakeCall()
    service = serve(key, store=store)
    requests = [ask(key), ask(), ask(key), ask(key)]
    assert service.decide_batch(batch(*requests), call) is None
    assert len(store.pending) == 3
    for left, index in ((3, 2), (1, 0), (2, 0)):
        assert call.replies == []
        store.answer(Taken(1, left, 0, NOW_US), index)
    assert [[response.remaining for response in answers(reply)] for reply in call.replies] == [[1, 0, 2, 3]]


def test_decide_batch__late_faults_are_denials(key: NewApiKey) -> None:
    """A trip that fails denies its request only."""
    store, call = RecordingStore(), FakeCall()
    serve(key, store=store).decide_batch(batch(ask(key), ask(key)), call)
    store.answer(StoreFault.TIMEOUT)
    store.answer(ADMITTED)
    assert [[reason_of(response) for response in answers(reply)] for reply in call.replies] == [
        ["store_unavailable", "ok"]
    ]
    assert call.failures == []


def test_decide_batch__takes_leave_together(key: NewApiKey) -> None:
    """All takes are with the store before the handler returns, so one trip can serve them."""
    store = RecordingStore()
    serve(key, store=store).decide_batch(batch(*10 * [ask(key)]), FakeCall())
    assert [take.asked for take in store.pending] == 10 * [1]


def test_decide_batch__a_caller_that_goes_away(key: NewApiKey) -> None:
    """The answers still come together and are handed to the call, which drops them: that frees its slot."""
    store, call = RecordingStore(), FakeCall()
    serve(key, store=store).decide_batch(batch(ask(key), ask(key)), call)
    call.cancel()
    store.answer(ADMITTED)
    store.answer(ADMITTED)
    assert len(call.replies) == 1

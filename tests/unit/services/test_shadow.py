"""Rules in shadow: evaluated and counted, with the reason in every answer, but the request is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from sidecar.domain.answers import AnswerStyle, Decision, answer_to
from sidecar.domain.decisions import Reason
from sidecar.domain.enforcement import ALL_RULES, NO_RULES, RULE_OF, Rule
from sidecar.domain.integrations import Integration, Status
from sidecar.domain.policy import Policy
from sidecar.observe.metrics import Metrics
from sidecar.services.decision_service import DecisionService
from sidecar.services.ext_authz import encode
from sidecar.services.templates import AnswerTemplates
from sidecar.stores.protocols import StoreFault
from sidecar.v1 import decision_pb2 as pb
from tests.building import (
    CLIENT_IP,
    NOW_US,
    FakeCall,
    FixedStore,
    ManualClock,
    make_decider,
    make_integration,
    make_key,
    make_metrics,
    make_policy,
    make_request,
)
from tests.unit.services.test_decider import decide_now

KEY = make_key()
FOREIGN = "198.51.100.1"
PATHS = {
    "/v1/finance/1": Reason.SCOPE_MISSING,
    "/nowhere": Reason.ROUTE_UNKNOWN,
    "/v1//orders": Reason.PATH_REFUSED,
    "/" + 9_000 * "a": Reason.URI_TOO_LONG,
}


def whole(shadow: frozenset[Rule]) -> Policy:
    """The default policy, with *shadow* for every integration."""
    policy = make_policy()
    policy.shadow = shadow
    return policy


def limited(shadow: Iterable[Rule] = ALL_RULES, **fields: Any) -> Integration:
    """An integration with one allowed address, a burst of 1, and *shadow*."""
    return make_integration(KEY, allowlist=[CLIENT_IP], burst=1, shadow=frozenset(shadow), **fields)


def outcome(decision: Decision) -> tuple[Reason, Reason | None]:
    """The reason and what shadow hid."""
    return decision.reason, decision.would_deny


def shadowed(metrics: Metrics) -> dict[str, int]:
    """The counts of would-be denials."""
    values = {reason.label: metrics.value("sidecar_shadow_denials_total", reason.label) for reason in RULE_OF}
    return {label: count for label, count in values.items() if count}


@pytest.mark.parametrize(("path", "reason"), PATHS.items())
def test_shadow__allows_what_path_route_and_scope_refuse(path: str, reason: Reason) -> None:
    """The reason is recorded and counted; without shadow the same request is refused for it."""
    metrics = make_metrics()
    decider = make_decider(limited([Rule.SCOPES]), metrics=metrics)
    assert outcome(decide_now(decider, KEY.api_key, path=path)) == (Reason.OK, reason)
    assert shadowed(metrics) == {reason.label: 1}
    assert metrics.value("sidecar_decisions_total", "ALLOW", "ok") == 1
    assert outcome(decide_now(make_decider(limited(())), KEY.api_key, path=path)) == (reason, None)


def test_shadow__is_for_the_whole_sidecar_or_for_an_integration() -> None:
    """Either puts a rule in shadow."""
    for shadow, policy in ((NO_RULES, whole(ALL_RULES)), (ALL_RULES, whole(NO_RULES))):
        decider = make_decider(limited(shadow), policy=policy)
        assert outcome(decide_now(decider, KEY.api_key, peer=FOREIGN)) == (Reason.OK, Reason.IP_NOT_ALLOWED)


def test_shadow__names_the_first_reason() -> None:
    """As when everything is enforced: allowlist, then scope, then limit."""
    decider = make_decider(limited())
    wrong = {"peer": FOREIGN, "path": "/v1/finance/1"}
    assert outcome(decide_now(decider, KEY.api_key, **wrong)) == (Reason.OK, Reason.IP_NOT_ALLOWED)
    assert outcome(decide_now(decider, KEY.api_key)) == (Reason.OK, None)
    assert outcome(decide_now(decider, KEY.api_key)) == (Reason.OK, Reason.RATE_LIMITED)
    assert outcome(decide_now(decider, KEY.api_key, path="/nowhere")) == (Reason.OK, Reason.ROUTE_UNKNOWN)


def test_shadow__a_denied_request_has_no_shadow_reason() -> None:
    """What an enforced rule refuses stays refused, for the reason of that rule."""
    decider = make_decider(limited([Rule.ALLOWLIST]))
    wrong = {"peer": FOREIGN, "path": "/v1/finance/1"}
    assert outcome(decide_now(decider, KEY.api_key, **wrong)) == (Reason.SCOPE_MISSING, None)


def test_shadow__an_enforced_limit_counts_what_a_rule_in_shadow_lets_through() -> None:
    """The request is admitted, so it takes a token; otherwise the limit would not hold."""
    decider = make_decider(limited([Rule.ALLOWLIST]))
    assert outcome(decide_now(decider, KEY.api_key, peer=FOREIGN)) == (Reason.OK, Reason.IP_NOT_ALLOWED)
    assert outcome(decide_now(decider, KEY.api_key, peer=FOREIGN)) == (Reason.RATE_LIMITED, None)


def test_shadow__a_limit_in_shadow_consumes_as_if_enforced() -> None:
    """A request that another rule would refuse takes nothing, and a refused take consumes nothing."""
    clock = ManualClock()
    decider = make_decider(limited(), clock=clock)
    assert outcome(decide_now(decider, KEY.api_key, peer=FOREIGN))[1] is Reason.IP_NOT_ALLOWED
    hidden = [decide_now(decider, KEY.api_key).would_deny for _ in range(3)]
    assert hidden == [None, Reason.RATE_LIMITED, Reason.RATE_LIMITED]
    clock.advance(1.0)
    assert decide_now(decider, KEY.api_key).would_deny is None


def test_shadow__never_covers_identity_and_suspension() -> None:
    """No key, an unknown or expired key, a suspended integration: refused, and not counted as shadow."""
    metrics = make_metrics()
    expired = make_key()
    records = (
        limited(status=Status.SUSPENDED),
        make_integration(expired, id="old", expires_at_us=NOW_US, shadow=ALL_RULES),
    )
    decider = make_decider(*records, policy=whole(ALL_RULES), metrics=metrics)
    expected = {
        None: Reason.MISSING_CREDENTIAL,
        "junk": Reason.MALFORMED_CREDENTIAL,
        make_key().api_key: Reason.UNKNOWN_CREDENTIAL,
        expired.api_key: Reason.EXPIRED_CREDENTIAL,
        KEY.api_key: Reason.INTEGRATION_SUSPENDED,
    }
    for api_key, reason in expected.items():
        assert outcome(decide_now(decider, api_key)) == (reason, None)
    assert shadowed(metrics) == {}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (StoreFault.UNAVAILABLE, Reason.STORE_UNAVAILABLE),
        (StoreFault.TIMEOUT, Reason.STORE_UNAVAILABLE),
        (StoreFault.OVERLOADED, Reason.OVERLOADED),
    ],
)
def test_shadow__a_failing_store_refuses_nobody(fault: StoreFault, reason: Reason) -> None:
    """With the limit in shadow the request is allowed."""
    decider = make_decider(limited([Rule.LIMIT]), store=FixedStore(fault))
    assert outcome(decide_now(decider, KEY.api_key)) == (Reason.OK, reason)
    assert outcome(decide_now(make_decider(limited(()), store=FixedStore(fault)), KEY.api_key)) == (
        reason,
        None,
    )


def test_shadow__an_outdated_record_refuses() -> None:
    """The newer record may suspend the integration, and suspension is never in shadow."""
    decider = make_decider(limited(), store=FixedStore(StoreFault.UNAVAILABLE))
    decider.snapshot.integrations["acme"].is_outdated = True
    assert outcome(decide_now(decider, KEY.api_key)) == (Reason.STORE_UNAVAILABLE, None)
    decider = make_decider(limited(), store=FixedStore(StoreFault.SUPERSEDED))
    assert outcome(decide_now(decider, KEY.api_key)) == (Reason.STORE_UNAVAILABLE, None)


@pytest.fixture
def allowed() -> Decision:
    """An allowed decision that would be a rate_limited one."""
    decider = make_decider(limited([Rule.LIMIT]))
    decide_now(decider, KEY.api_key)
    return decide_now(decider, KEY.api_key)


def test_would_deny__is_in_the_answer_of_every_dialect(allowed: Decision) -> None:
    """A response header and Envoy's metadata name the reason; other allowed answers have neither."""
    answer = answer_to(allowed, AnswerStyle())
    assert (answer.status, answer.body) == (200, b"")
    assert dict(answer.client_headers)["x-auth-would-deny"] == "rate_limited"
    assert "retry-after" not in dict(answer.client_headers)
    assert answer.metadata["would_deny"] == "rate_limited"
    plain = answer_to(decide_now(make_decider(limited()), KEY.api_key), AnswerStyle())
    assert "x-auth-would-deny" not in dict(plain.client_headers)
    assert "would_deny" not in plain.metadata


def test_would_deny__is_part_of_the_template(allowed: Decision) -> None:
    """An answer without the header does not reuse the template of one with it."""
    templates = AnswerTemplates(AnswerStyle(), encode)
    plain = Decision(allowed.id, Reason.OK, allowed.evaluation, allowed.taken)
    for decision, expected in ((allowed, True), (plain, False), (allowed, True)):
        response = CheckResponse.FromString(templates.render(decision, make_request(KEY.api_key)))
        assert ("would_deny" in response.dynamic_metadata.fields) is expected


def test_would_deny__is_in_the_native_answer() -> None:
    """As a reason, with the verdict ALLOW."""
    service = DecisionService(make_decider(limited([Rule.ALLOWLIST])), AnswerStyle())
    request = pb.DecideRequest(api_key=KEY.api_key, client_ip=FOREIGN, method="GET", path="/v1/orders/1")
    answer = service.decide(request.SerializeToString(), FakeCall())
    assert answer is not None
    response = pb.DecideResponse.FromString(answer)
    assert response.verdict == pb.VERDICT_ALLOW
    assert response.would_deny == pb.REASON_IP_NOT_ALLOWED

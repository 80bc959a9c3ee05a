"""Decisions while the shared store fails: every policy after every fault, and what no policy may admit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain.answers import Decision, limits_of
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.decisions import Reason
from sidecar.domain.fail_policy import FALLBACK_VERDICTS, FailPolicy, Fallback
from sidecar.domain.integrations import Integration, Status
from sidecar.domain.snapshot import Snapshot
from sidecar.observe.metrics import Metrics
from sidecar.services.decider import REEVALUATIONS_MAX, Decider
from sidecar.services.store_fallback import StoreFallback
from sidecar.stores.local_share import LocalShare
from sidecar.stores.protocols import StoreFault
from tests.building import (
    NOW_US,
    SECOND_US,
    FixedStore,
    ManualClock,
    RecordingStore,
    make_decider,
    make_integration,
    make_key,
    make_metrics,
    make_request,
)

FAILURES = (StoreFault.UNAVAILABLE, StoreFault.TIMEOUT, StoreFault.OVERLOADED)
POLICIES = tuple(FailPolicy)
SHARED = Taken(1, 19, 0, NOW_US + 3 * SECOND_US)
"""What the first take finds in a third of sixty a minute."""


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


class FallbackHarness:
    """A decider whose store fails, with one of three sidecars' shares."""

    def __init__(
        self, *records: Integration, policy: FailPolicy = FailPolicy.DENY, live: int = 3, room: int = 1_000
    ) -> None:
        """Decide over *records* by *policy*; the store waits for `fail`; *room* is for local buckets."""
        self.clock = ManualClock()
        self.metrics: Metrics = make_metrics()
        self.store = RecordingStore()
        self.local = LocalShare(self.clock, live, buckets_max=room)
        fallback = StoreFallback(self.metrics, policy, self.local)
        self.decider: Decider = make_decider(
            *records, store=self.store, clock=self.clock, metrics=self.metrics, fallback=fallback
        )
        self.decisions: list[Decision] = []

    def ask(self, api_key: str | None, **request: Any) -> None:
        """Begin a decision; one that comes at once is kept too."""
        decision = self.decider.decide(make_request(api_key, **request), None, self._done, None)
        if decision is not None:
            self.decisions.append(decision)

    def fail(self, fault: StoreFault) -> Decision:
        """Let the take that waits end with *fault*; the decision that comes of it."""
        before = len(self.decisions)
        self.store.answer(fault)
        assert len(self.decisions) == before + 1
        return self.decisions[-1]

    def after(self, api_key: str, fault: StoreFault = StoreFault.UNAVAILABLE, **request: Any) -> Decision:
        """The decision on a request whose take ends with *fault*."""
        self.ask(api_key, **request)
        return self.fail(fault)

    def fallbacks(self) -> dict[tuple[str, str], int]:
        """Answers by policy that were counted."""
        counts = {
            (policy.value, verdict.value): self.metrics.value(
                "sidecar_store_fallbacks_total", policy.value, verdict.value
            )
            for policy, verdict in FALLBACK_VERDICTS
        }
        return {labels: count for labels, count in counts.items() if count}

    def _done(self, decision: Decision, context: None) -> None:
        self.decisions.append(decision)


def closed(fault: StoreFault) -> Reason:
    """Why a request is refused after *fault*."""
    return Reason.OVERLOADED if fault is StoreFault.OVERLOADED else Reason.STORE_UNAVAILABLE


@pytest.mark.parametrize("fault", FAILURES)
@pytest.mark.parametrize("policy", POLICIES)
def test_policy__answers_each_fault(key: NewApiKey, policy: FailPolicy, fault: StoreFault) -> None:
    """Deny refuses and names the fault, allow admits without a bucket, local takes its share; marked."""
    harness = FallbackHarness(make_integration(key), policy=policy)
    decision = harness.after(key.api_key, fault)
    expected = {
        FailPolicy.DENY: (closed(fault), None, Fallback(policy)),
        FailPolicy.ALLOW: (Reason.OK, None, Fallback(policy)),
        FailPolicy.LOCAL: (Reason.OK, SHARED, Fallback(policy, 20)),
    }
    assert (decision.reason, decision.taken, decision.fallback) == expected[policy]
    assert harness.fallbacks() == {(policy.value, decision.reason.verdict.value): 1}
    assert harness.metrics.value(
        "sidecar_decisions_total", decision.reason.verdict.value, decision.reason.label
    ) == len(harness.decisions)


@pytest.mark.parametrize("fault", FAILURES)
@pytest.mark.parametrize("policy", POLICIES)
def test_policy__is_the_same_at_once(key: NewApiKey, policy: FailPolicy, fault: StoreFault) -> None:
    """A store that fails without a trip is answered for in the same way."""
    late = FallbackHarness(make_integration(key), policy=policy).after(key.api_key, fault)
    fallback = StoreFallback(make_metrics(), policy, LocalShare(ManualClock(), 3))
    decider = make_decider(make_integration(key), store=FixedStore(fault), fallback=fallback)
    decision = decider.decide(make_request(key.api_key), None, lambda decision, context: None, None)
    assert decision is not None
    assert (decision.reason, decision.taken) == (late.reason, late.taken)
    assert decision.fallback == late.fallback


@pytest.mark.parametrize("own", POLICIES)
@pytest.mark.parametrize("general", POLICIES)
def test_policy__of_the_integration_goes_first(key: NewApiKey, general: FailPolicy, own: FailPolicy) -> None:
    """An integration's own policy holds for it, whatever is configured for the others."""
    other = make_key()
    harness = FallbackHarness(
        make_integration(key, on_store_error=own), make_integration(other, id="b"), policy=general
    )
    fallbacks = [harness.after(owner.api_key).fallback for owner in (key, other)]
    assert [fallback.policy for fallback in fallbacks if fallback is not None] == [own, general]


@pytest.mark.parametrize("policy", POLICIES)
def test_policy__a_record_that_never_settles_stays_closed(key: NewApiKey, policy: FailPolicy) -> None:
    """SUPERSEDED is the store at work, not its failure: no policy applies, and none is reported."""
    harness = FallbackHarness(make_integration(key), policy=policy)
    harness.ask(key.api_key)
    for _ in range(REEVALUATIONS_MAX):
        harness.store.answer(StoreFault.SUPERSEDED)
    decision = harness.fail(StoreFault.SUPERSEDED)
    assert (decision.reason, decision.taken, decision.fallback) == (Reason.STORE_UNAVAILABLE, None, None)
    assert harness.fallbacks() == {}


@pytest.mark.parametrize("fault", FAILURES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("record", "request_of", "reason"),
    [
        ({"status": Status.SUSPENDED}, {}, Reason.INTEGRATION_SUSPENDED),
        ({"allowlist": ("192.0.2.0/24",)}, {}, Reason.IP_NOT_ALLOWED),
        ({}, {"path": "/v1/../x"}, Reason.PATH_REFUSED),
        ({}, {"path": "/v1/finance/1"}, Reason.SCOPE_MISSING),
    ],
)
def test_policy__a_refusal_stays_a_refusal(
    key: NewApiKey,
    policy: FailPolicy,
    fault: StoreFault,
    record: dict[str, Any],
    request_of: dict[str, Any],
    reason: Reason,
) -> None:
    """What the registry refuses is refused by every policy, without limits, and is no answer by policy."""
    harness = FallbackHarness(make_integration(key, **record), policy=policy)
    decision = harness.after(key.api_key, fault, **request_of)
    assert (decision.reason, decision.taken, decision.fallback) == (reason, None, None)
    assert (harness.fallbacks(), len(harness.local)) == ({}, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_policy__an_unknown_caller_is_not_asked_for(key: NewApiKey, policy: FailPolicy) -> None:
    """Missing, malformed, unknown and expired keys are refused without the store, and so without a policy."""
    expired = make_integration(key, on_store_error=policy, expires_at_us=NOW_US)
    harness = FallbackHarness(expired, policy=policy)
    for api_key in (None, "junk", make_key().api_key, key.api_key):
        harness.ask(api_key)
    assert [decision.reason for decision in harness.decisions] == [
        Reason.MISSING_CREDENTIAL,
        Reason.MALFORMED_CREDENTIAL,
        Reason.UNKNOWN_CREDENTIAL,
        Reason.EXPIRED_CREDENTIAL,
    ]
    assert harness.store.tried == []
    assert {decision.fallback for decision in harness.decisions} == {None}


@pytest.mark.parametrize("policy", POLICIES)
def test_policy__a_registry_that_was_never_loaded_lets_nobody_in(key: NewApiKey, policy: FailPolicy) -> None:
    """Whether a key is good is not known then, so it is refused with 503 by every policy."""
    harness = FallbackHarness(policy=policy)
    harness.decider.snapshot = Snapshot.unloaded()
    harness.ask(key.api_key)
    assert [(decision.reason, decision.fallback) for decision in harness.decisions] == [
        (Reason.STORE_UNAVAILABLE, None)
    ]


@pytest.mark.parametrize("fault", FAILURES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("now", "reason"),
    [({"status": Status.SUSPENDED}, Reason.INTEGRATION_SUSPENDED), (None, Reason.UNKNOWN_CREDENTIAL)],
    ids=["suspended", "deleted"],
)
def test_policy__goes_by_the_record_of_now(
    key: NewApiKey, policy: FailPolicy, fault: StoreFault, now: dict[str, Any] | None, reason: Reason
) -> None:
    """An integration suspended or deleted while the take was on its way is not admitted by its failure."""
    harness = FallbackHarness(make_integration(key), policy=policy)
    harness.ask(key.api_key)
    records = [] if now is None else [make_integration(key, generation=2, **now)]
    harness.decider.snapshot = Snapshot.compile(records)
    decision = harness.fail(fault)
    assert (decision.reason, decision.taken, decision.fallback) == (reason, None, None)


def test_policy__that_was_changed_meanwhile_is_the_new_one(key: NewApiKey) -> None:
    """An integration that must fail closed from now on does so for the requests that are on their way."""
    harness = FallbackHarness(make_integration(key, on_store_error=FailPolicy.ALLOW))
    harness.ask(key.api_key)
    stricter = make_integration(key, on_store_error=FailPolicy.DENY, generation=2)
    harness.decider.snapshot = Snapshot.compile([stricter])
    assert harness.fail(StoreFault.TIMEOUT).reason is Reason.STORE_UNAVAILABLE


@pytest.mark.parametrize("policy", POLICIES)
def test_policy__opens_no_door_by_an_outdated_record(key: NewApiKey, policy: FailPolicy) -> None:
    """The store has said that there is a later record, perhaps a suspension, and failed before it came."""
    harness = FallbackHarness(make_integration(key, on_store_error=policy))
    harness.decider.snapshot.integrations["acme"].is_outdated = True
    decision = harness.after(key.api_key)
    assert (decision.reason, decision.fallback) == (Reason.STORE_UNAVAILABLE, Fallback(FailPolicy.DENY))


def test_embedded__has_no_policy(key: NewApiKey) -> None:
    """A store that is not shared refuses what it has no room for, whatever an integration's policy says."""
    record = make_integration(key, on_store_error=FailPolicy.ALLOW)
    decider = make_decider(record, store=FixedStore(StoreFault.OVERLOADED))
    decision = decider.decide(make_request(key.api_key), None, lambda decision, context: None, None)
    assert decision is not None
    assert (decision.reason, decision.fallback) == (Reason.OVERLOADED, None)


def test_local__shows_and_keeps_the_share(key: NewApiKey) -> None:
    """A third of the limit: twenty requests, then 429 with the share's figures, until a token is back."""
    harness = FallbackHarness(make_integration(key), policy=FailPolicy.LOCAL)
    reasons = [harness.after(key.api_key).reason for _ in range(22)]
    assert reasons == 20 * [Reason.OK] + 2 * [Reason.RATE_LIMITED]
    limits = limits_of(harness.decisions[-1])
    assert limits is not None
    assert (limits.limit, limits.remaining, limits.retry_after, limits.is_share) == ("20", "0", "3", True)
    assert limits.reset == str(NOW_US // SECOND_US + 60)
    assert harness.fallbacks() == {("local", "ALLOW"): 20, ("local", "DENY_429"): 2}
    harness.clock.advance(seconds=3)
    assert harness.after(key.api_key).reason is Reason.OK


@pytest.mark.parametrize(("live", "limit"), [(1, "60"), (7, "8"), (61, "1")])
def test_local__limit_is_rounded_down_but_at_least_one(key: NewApiKey, live: int, limit: str) -> None:
    """As many requests a minute as this sidecar surely grants."""
    limits = limits_of(
        FallbackHarness(make_integration(key), policy=FailPolicy.LOCAL, live=live).after(key.api_key)
    )
    assert limits is not None
    assert limits.limit == limit


def test_local__without_room_for_one_more_bucket_refuses(key: NewApiKey) -> None:
    """The memory for local buckets is bounded; who finds none is refused as overloaded, marked."""
    harness = FallbackHarness(make_integration(key), policy=FailPolicy.LOCAL, room=0)
    decision = harness.after(key.api_key)
    assert (decision.reason, decision.taken) == (Reason.OVERLOADED, None)
    assert decision.fallback == Fallback(FailPolicy.LOCAL, 20)
    assert harness.fallbacks() == {("local", "DENY_403"): 1}


def admitted(decisions: Iterable[Decision]) -> int:
    """How many were admitted."""
    return sum(decision.reason is Reason.OK for decision in decisions)


@settings(max_examples=40, deadline=None)
@given(
    live=st.integers(1, 8),
    limit_rpm=st.integers(1, 120),
    burst=st.integers(1, 60),
    asked=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), max_size=120),
)
def test_local__a_fleet_together_keeps_the_limit(
    live: int, limit_rpm: int, burst: int, asked: list[tuple[int, int]]
) -> None:
    """However requests are spread over k sidecars: at most B + L·T/60, or k where B is less than k."""
    key = make_key()
    record = make_integration(key, rate_limit_rpm=limit_rpm, burst=burst)
    fleet = [FallbackHarness(record, policy=FailPolicy.LOCAL, live=live) for _ in range(live)]
    passed_s = 0
    for which, pause_s in asked:
        passed_s += pause_s
        for harness in fleet:
            harness.clock.advance(seconds=pause_s)
        fleet[which % live].after(key.api_key)
    total = sum(admitted(harness.decisions) for harness in fleet)
    assert total * 60 <= max(burst, live) * 60 + limit_rpm * passed_s

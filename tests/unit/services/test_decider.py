"""From a request to a decision: at once, late, and when the store fails or knows better."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.domain.answers import Decision, Limits, limits_of
from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.bucket import Taken
from sidecar.domain.decision_ids import DECISION_ID_LENGTH
from sidecar.domain.decisions import Reason
from sidecar.domain.integrations import Status
from sidecar.domain.snapshot import Snapshot
from sidecar.observe.metrics import Metrics
from sidecar.services.decider import REEVALUATIONS_MAX, Decider
from sidecar.stores.protocols import StoreFault
from tests.building import (
    NOW_US,
    FixedStore,
    ManualClock,
    RecordingStore,
    make_decider,
    make_integration,
    make_key,
    make_metrics,
    make_request,
)

ADMITTED = Taken(1, 59, 0, NOW_US + 1_000_000)
REFUSED = Taken(0, 0, 1_000_000, NOW_US + 60_000_000)
PEEKED = Taken(0, 60, 0, NOW_US)


@pytest.fixture
def key() -> NewApiKey:
    """The key of the integration 'acme'."""
    return make_key()


class Answers:
    """Where late decisions arrive, each with its context."""

    def __init__(self) -> None:
        """Begin empty."""
        self.late: list[tuple[Decision, str]] = []

    def __call__(self, decision: Decision, context: str) -> None:
        """Keep one."""
        self.late.append((decision, context))


def decide_now(decider: Decider, api_key: str | None, **request: Any) -> Decision:
    """The decision on a request, which must come at once."""
    answers = Answers()
    decision = decider.decide(make_request(api_key, **request), None, answers, "context")
    assert decision is not None
    assert answers.late == []
    return decision


def counts(metrics: Metrics) -> dict[str, int]:
    """Decisions counted, by reason."""
    values = {
        reason.label: metrics.value("sidecar_decisions_total", reason.verdict.value, reason.label)
        for reason in Reason
    }
    return {word: value for word, value in values.items() if value}


def observed(metrics: Metrics) -> int:
    """How many decisions were timed."""
    (family,) = [f for f in metrics.collect() if f.name == "sidecar_decision_duration_seconds"]
    return int(next(sample.value for sample in family.samples if sample.name.endswith("_count")))


def test_decide__allows_at_once(key: NewApiKey) -> None:
    """With an embedded store the decision is returned, complete."""
    decision = decide_now(make_decider(make_integration(key)), key.api_key)
    assert (decision.reason, decision.taken) == (Reason.OK, ADMITTED)
    assert decision.evaluation.reason is Reason.OK
    assert len(decision.id) == DECISION_ID_LENGTH


def test_decide__refuses_beyond_the_burst(key: NewApiKey) -> None:
    """The registry allows, the bucket does not: rate_limited, with the figures of the bucket."""
    decider = make_decider(make_integration(key, burst=1))
    assert decide_now(decider, key.api_key).reason is Reason.OK
    decision = decide_now(decider, key.api_key)
    assert decision.reason is Reason.RATE_LIMITED
    assert decision.taken == Taken(0, 0, 1_000_000, NOW_US + 1_000_000)


def test_decide__ids_are_unique(key: NewApiKey) -> None:
    """Each decision has its own."""
    decider = make_decider(make_integration(key))
    assert len({decide_now(decider, api_key).id for api_key in 5 * [key.api_key, "junk", None]}) == 15


@pytest.mark.parametrize("api_key", [None, "junk", make_key().api_key], ids=("none", "junk", "unknown"))
def test_decide__an_unknown_caller_costs_no_trip(key: NewApiKey, api_key: str | None) -> None:
    """Anyone who floods with bad keys never reaches the store."""
    store = RecordingStore()
    decision = decide_now(make_decider(make_integration(key), store=store), api_key)
    assert decision.taken is None
    assert (store.tried, store.pending) == ([], [])


def test_decide__a_refused_caller_is_peeked(key: NewApiKey) -> None:
    """A known caller's refusal looks at the bucket, to show limits, and takes nothing."""
    store = RecordingStore()
    decider = make_decider(make_integration(key), store=store)
    answers = Answers()
    assert decider.decide(make_request(key.api_key, path="/v1/finance/1"), None, answers, "c") is None
    buckets = decider.snapshot.integrations["acme"].buckets
    assert store.tried == [(buckets, 0)]
    assert (store.pending[0].buckets, store.pending[0].asked) == (buckets, 0)
    store.answer(PEEKED)
    assert [(decision.reason, decision.taken) for decision, _ in answers.late] == [
        (Reason.SCOPE_MISSING, PEEKED)
    ]


def test_decide__a_refused_caller_stays_refused_with_an_empty_bucket(key: NewApiKey) -> None:
    """A 403 does not turn into a 429."""
    decider = make_decider(make_integration(key), store=FixedStore(REFUSED))
    assert decide_now(decider, key.api_key, path="/v1/finance/1").reason is Reason.SCOPE_MISSING


@pytest.mark.parametrize(("outcome", "reason"), [(ADMITTED, Reason.OK), (REFUSED, Reason.RATE_LIMITED)])
def test_decide__late(key: NewApiKey, outcome: Taken, reason: Reason) -> None:
    """Where the store needs a trip the decision comes by `done`, once, with the context it was asked with."""
    store, answers = RecordingStore(), Answers()
    decider = make_decider(make_integration(key), store=store)
    assert decider.decide(make_request(key.api_key), None, answers, "mine") is None
    assert answers.late == []
    store.answer(outcome)
    assert [(d.reason, d.taken, context) for d, context in answers.late] == [(reason, outcome, "mine")]
    assert store.pending == []


@pytest.mark.parametrize(
    ("deadline_s", "expected_s"), [(None, 0.05), (100.02, 0.018), (101.0, 0.05), (100.0, 0.0), (99.0, 0.0)]
)
def test_decide__the_caller_s_deadline_bounds_the_trip(
    key: NewApiKey, monkeypatch: pytest.MonkeyPatch, deadline_s: float | None, expected_s: float
) -> None:
    """The store gets its own bound or most of what the caller has left, whichever is less, and at least 0."""
    monkeypatch.setattr("sidecar.services.decider.monotonic", lambda: 100.0)
    store = RecordingStore()
    decider = make_decider(make_integration(key), store=store, store_timeout_s=0.05)
    decider.decide(make_request(key.api_key), deadline_s, Answers(), "c")
    assert store.pending[0].timeout_s == pytest.approx(expected_s)


FAULTS = [
    (StoreFault.UNAVAILABLE, Reason.STORE_UNAVAILABLE),
    (StoreFault.TIMEOUT, Reason.STORE_UNAVAILABLE),
    (StoreFault.OVERLOADED, Reason.OVERLOADED),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_decide__a_fault_fails_closed(key: NewApiKey, fault: StoreFault, reason: Reason) -> None:
    """What the registry would allow is refused while the bucket cannot be asked, at once or late."""
    decision = decide_now(make_decider(make_integration(key), store=FixedStore(fault)), key.api_key)
    assert (decision.reason, decision.taken) == (reason, None)
    store, answers = RecordingStore(), Answers()
    make_decider(make_integration(key), store=store).decide(make_request(key.api_key), None, answers, "c")
    store.answer(fault)
    assert [(late.reason, late.taken) for late, _ in answers.late] == [(reason, None)]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_decide__a_fault_leaves_a_refusal_as_it_is(key: NewApiKey, fault: StoreFault, reason: Reason) -> None:
    """A suspended integration gets that reason, without limits."""
    decider = make_decider(make_integration(key, status=Status.SUSPENDED), store=FixedStore(fault))
    decision = decide_now(decider, key.api_key)
    assert (decision.reason, decision.taken) == (Reason.INTEGRATION_SUSPENDED, None)


def test_decide__a_fault_is_never_retried(key: NewApiKey) -> None:
    """One decision, one call: retries would multiply the load of a sick store."""
    store = FixedStore()
    decide_now(make_decider(make_integration(key), store=store), key.api_key)
    assert store.takes == 1


@pytest.mark.parametrize(("retry_after_us", "expected"), [(0, ""), (1, "1"), (1_000_001, "2"), (-1, "")])
def test_limits_of__tells_a_wait_only_where_one_ends(
    key: NewApiKey, retry_after_us: int, expected: str
) -> None:
    """Whole seconds, rounded up; nothing while a token is left, and nothing where waiting cannot help."""
    store = FixedStore(Taken(0, 0, retry_after_us, NOW_US + 1))
    limits = limits_of(decide_now(make_decider(make_integration(key), store=store), key.api_key))
    assert limits == Limits("60", "0", str(NOW_US // 1_000_000 + 1), expected)


def test_limits_of__nothing_without_a_bucket(key: NewApiKey) -> None:
    """Neither for an unknown caller nor when the store fails are figures made up."""
    decider = make_decider(make_integration(key), store=FixedStore())
    assert [limits_of(decide_now(decider, api_key)) for api_key in (None, key.api_key)] == [None, None]


def test_decide__a_snapshot_that_changes_meanwhile(key: NewApiKey) -> None:
    """A decision that has begun goes on with the record it began with, as long as the store agrees."""
    store, answers = RecordingStore(), Answers()
    decider = make_decider(make_integration(key), store=store)
    decider.decide(make_request(key.api_key), None, answers, "c")
    decider.snapshot = Snapshot.empty()
    store.answer(ADMITTED)
    assert answers.late[0][0].reason is Reason.OK
    assert decide_now(decider, key.api_key).reason is Reason.UNKNOWN_CREDENTIAL


def test_decide__superseded_by_a_suspension(key: NewApiKey) -> None:
    """The store knows of a newer record: the request is decided again by it, and only peeks now."""
    store, answers = RecordingStore(), Answers()
    decider = make_decider(make_integration(key), store=store)
    decider.decide(make_request(key.api_key), None, answers, "c")
    decider.snapshot = Snapshot.compile([make_integration(key, status=Status.SUSPENDED, generation=2)])
    store.answer(StoreFault.SUPERSEDED)
    assert answers.late == []
    assert (store.pending[0].asked, store.pending[0].buckets.generation) == (0, 2)
    store.answer(PEEKED)
    assert [(decision.reason, context) for decision, context in answers.late] == [
        (Reason.INTEGRATION_SUSPENDED, "c")
    ]


def test_decide__superseded_by_a_removal(key: NewApiKey) -> None:
    """An integration that was deleted is answered at once, without another trip."""
    store, answers = RecordingStore(), Answers()
    metrics = make_metrics()
    decider = make_decider(make_integration(key), store=store, metrics=metrics)
    decider.decide(make_request(key.api_key), None, answers, "c")
    decider.snapshot = Snapshot.empty()
    store.answer(StoreFault.SUPERSEDED)
    assert [decision.reason for decision, _ in answers.late] == [Reason.UNKNOWN_CREDENTIAL]
    assert store.pending == []
    assert counts(metrics) == {"unknown_credential": 1}


def test_decide__superseded_again_and_again_fails_closed(key: NewApiKey) -> None:
    """A record that never settles costs a bounded number of trips."""
    store, answers = RecordingStore(), Answers()
    decider = make_decider(make_integration(key), store=store)
    decider.decide(make_request(key.api_key), None, answers, "c")
    for _ in range(REEVALUATIONS_MAX + 1):
        assert answers.late == []
        store.answer(StoreFault.SUPERSEDED)
    assert [decision.reason for decision, _ in answers.late] == [Reason.STORE_UNAVAILABLE]
    assert store.pending == []
    assert len(store.tried) == 1


def test_decide__superseded_keeps_the_caller_s_deadline(
    key: NewApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second trip gets most of what the first has left."""
    now_s = 100.0
    monkeypatch.setattr("sidecar.services.decider.monotonic", lambda: now_s)
    store = RecordingStore()
    decider = make_decider(make_integration(key), store=store)
    decider.decide(make_request(key.api_key), 100.03, Answers(), "c")
    now_s = 100.02
    store.answer(StoreFault.SUPERSEDED)
    assert store.pending[0].timeout_s == pytest.approx(0.009)


def test_decide__counts_each_decision_once(key: NewApiKey) -> None:
    """By verdict and reason, at once or late, and every one is timed."""
    metrics, clock = make_metrics(), ManualClock()
    record = make_integration(key, burst=2)
    decider = make_decider(record, metrics=metrics, clock=clock)
    for api_key, path in (
        *4 * [(key.api_key, "/v1/orders/1")],
        (key.api_key, "//"),
        (None, "/"),
        ("junk", "/"),
    ):
        decide_now(decider, api_key, path=path)
    expected = {
        "ok": 2,
        "rate_limited": 2,
        "path_refused": 1,
        "missing_credential": 1,
        "malformed_credential": 1,
    }
    assert counts(metrics) == expected
    assert observed(metrics) == 7
    store = RecordingStore()
    late = make_decider(record, store=store, metrics=metrics)
    late.decide(make_request(key.api_key), None, Answers(), "c")
    assert counts(metrics) == expected
    store.answer(StoreFault.OVERLOADED)
    assert counts(metrics) == {**expected, "overloaded": 1}
    assert observed(metrics) == 8


def test_decide__expiry_is_judged_by_the_given_clock(key: NewApiKey) -> None:
    """Time comes in from outside, so that it can be moved."""
    clock = ManualClock()
    decider = make_decider(make_integration(key, expires_at_us=NOW_US + 1_000_000), clock=clock)
    assert decide_now(decider, key.api_key).reason is Reason.OK
    clock.advance(1)
    assert decide_now(decider, key.api_key).reason is Reason.EXPIRED_CREDENTIAL

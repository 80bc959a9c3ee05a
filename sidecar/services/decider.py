"""Decides a request: evaluates the policy, then takes from the bucket. Used by every deciding service."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, perf_counter_ns
from typing import Any, Final, TypeVar

from sidecar.domain.answers import Decision
from sidecar.domain.bucket import Taken
from sidecar.domain.decision_ids import DecisionIds
from sidecar.domain.decisions import Reason
from sidecar.domain.enforcement import RULE_OF
from sidecar.domain.fail_policy import Fallback
from sidecar.domain.policy import AccessRequest, Evaluation, Policy
from sidecar.domain.snapshot import CompiledIntegration, Snapshot
from sidecar.observe.integration_rows import LISTED_DEFAULT, RESET_AT_US, RESULTS, IntegrationRows, result_of
from sidecar.observe.metrics import Metrics
from sidecar.services.recent_refusals import RecentRefusals
from sidecar.services.store_fallback import StoreFallback, fault_reason
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.protocols import BucketStore, StoreFault, TakeDone

_OK: Final = Reason.OK
_now_ns: Final = perf_counter_ns

STORE_TIMEOUT_S: Final = 0.05
"""Maximum wait of a decision for the store."""

STORE_SHARE: Final = 0.9
"""The store's share of the caller's remaining time; the rest is for encoding and sending the answer."""

REEVALUATIONS_MAX: Final = 2
"""How often a decision is repeated because the record changed meanwhile, before it fails closed."""


Context = TypeVar("Context")


class Decider:
    """
    Decides requests by the current policy and registry snapshot.

    `snapshot` and `policy` are replaced as a whole when the registry or the configuration changes. A running
    decision keeps those with which it began, unless the store reports that the integration's record has
    changed since.
    """

    def __init__(
        self,
        policy: Policy,
        snapshot: Snapshot,
        store: BucketStore,
        metrics: Metrics,
        clock_us: Callable[[], int] = wall_clock_us,
        store_timeout_s: float = STORE_TIMEOUT_S,
        fallback: StoreFallback | None = None,
        listed_max: int = LISTED_DEFAULT,
    ) -> None:
        """
        Count in *metrics*.

        Args:
            clock_us: judges expiry; with a shared store it is the store's clock, so that all sidecars agree.
            fallback: answers while the shared store is unavailable; None = the store is local, and requests
                that it cannot answer are refused.
            listed_max: how many integrations have metrics of their own.
        """
        self.policy = policy
        self.snapshot = snapshot
        self.note_use: Callable[[Evaluation, int], None] | None = None
        """Records each request with a known key and its time; None = uses are not recorded."""
        self.on_refused: Callable[[AccessRequest, Decision], None] | None = None
        """Called with each request that is denied, or that a rule in shadow would deny."""
        self.refusals: RecentRefusals | None = None
        """The latest refusals of each integration; None = they are not kept."""
        self.on_decided: Callable[[AccessRequest | None, Decision, int], None] | None = None
        """
        Records each request, its decision and the time that the decision took, in ns; request None = a
        refusal without a readable request. It must not raise. None = nothing observes them.
        """
        self._store = store
        self._take_now = store.take_now
        self.clock_us = clock_us
        self._store_timeout_s = store_timeout_s
        self._fallback = fallback
        self._next_id = DecisionIds()
        self._values = metrics.values
        self._slots = {
            reason: metrics.slot("sidecar_decisions_total", reason.verdict.value, reason.label)
            for reason in Reason
        }
        self._shadow_slots = {
            reason: metrics.slot("sidecar_shadow_denials_total", reason.label) for reason in RULE_OF
        }
        self._places = {reason: RESULTS.index(result_of(reason)) for reason in Reason}
        self.rows = IntegrationRows(metrics.table.integrations, metrics.values, listed_max)
        self._durations = metrics.histogram("sidecar_decision_duration_seconds")

    def add_observer(self, note: Callable[[AccessRequest | None, Decision, int], None]) -> None:
        """Call *note* for each decision, after those that were added before; see `on_decided`."""
        former = self.on_decided
        if former is None:
            self.on_decided = note
            return

        def note_both(request: AccessRequest | None, decision: Decision, elapsed_ns: int) -> None:
            former(request, decision, elapsed_ns)
            note(request, decision, elapsed_ns)

        self.on_decided = note_both

    def count(self) -> int:
        """Return the number of decisions so far."""
        return sum(self._values[slot] for slot in self._slots.values())

    def decide(
        self,
        request: AccessRequest,
        deadline_s: float | None,
        done: Callable[[Decision, Context], None],
        context: Context,
    ) -> Decision | None:
        """
        Decide *request*, or return None and call `done(decision, context)` once after the store's round trip.

        *deadline_s* is the caller's deadline on the monotonic clock, None = no deadline. The store gets at
        most its own timeout, and at most STORE_SHARE of the caller's remaining time.
        """
        started_ns = _now_ns()
        now_us = self.clock_us()
        evaluation = self.policy.evaluate(request, self.snapshot, now_us)
        integration = evaluation.integration
        if integration is None:
            return self._finish(request, evaluation.reason, evaluation, None, started_ns)
        if self.note_use is not None:
            self.note_use(evaluation, now_us)
        is_plain = evaluation.reason is _OK and evaluation.would_deny is None
        outcome = self._take_now(integration.buckets, 1 if is_plain else self.policy.takes(evaluation))
        if outcome is not None:
            return self._settle(request, evaluation, outcome, started_ns)
        pending = _Pending(self, request, evaluation, deadline_s, done, context, started_ns)
        self._take_later(pending)
        return None

    def identify(self, request: AccessRequest) -> Evaluation:
        """Check key, suspension and address of *request*, whatever its path; nothing is counted or taken."""
        asked = AccessRequest(
            "GET", "/", request.header, request.peer, "none", request.api_key, request.address_rule
        )
        return self.policy.evaluate(asked, self.snapshot, self.clock_us())

    def peek(self, integration: CompiledIntegration, done: TakeDone) -> Taken | StoreFault | None:
        """Return the state of the integration's bucket, or None and call *done* after a round trip."""
        outcome = self._take_now(integration.buckets, 0)
        if outcome is None:
            self._store.take_later(integration.buckets, 0, self._store_timeout_s, done)
        return outcome

    def refuse(self, reason: Reason, detail: str) -> Decision:
        """Deny a request without a known integration for *reason*; *detail* is the text for the caller."""
        return self._finish(None, reason, Evaluation(reason, detail=detail), None, _now_ns())

    def _take_later(self, pending: _Pending) -> None:
        integration = pending.evaluation.integration
        assert integration is not None
        timeout_s = self._store_timeout_s
        if pending.deadline_s is not None:
            timeout_s = max(0.0, min(timeout_s, STORE_SHARE * (pending.deadline_s - monotonic())))
        asked = self.policy.takes(pending.evaluation)
        self._store.take_later(integration.buckets, asked, timeout_s, pending.settle)

    def _settle(
        self, request: AccessRequest, evaluation: Evaluation, outcome: Taken | StoreFault, started_ns: int
    ) -> Decision:
        if type(outcome) is not Taken:
            return self._fall_back(request, evaluation, outcome, started_ns)
        reason, would_deny = evaluation.reason, evaluation.would_deny
        if reason is _OK and not outcome.admitted:
            reason, would_deny = self.policy.limited(evaluation, Reason.RATE_LIMITED)
        return self._finish(request, reason, evaluation, outcome, started_ns, None, would_deny)

    def _fall_back(
        self, request: AccessRequest, evaluation: Evaluation, fault: StoreFault, started_ns: int
    ) -> Decision:
        """
        Decide after *fault*: a denial stays, without limits; otherwise the fail policy decides.

        SUPERSEDED (the record keeps changing) is not a failure of the store, so it is always denied. So is a
        request by an outdated record, although the limit is in shadow: the newer record may suspend it.
        """
        reason, integration = evaluation.reason, evaluation.integration
        if reason is not _OK or integration is None:
            return self._finish(request, reason, evaluation, None, started_ns)
        if fault is StoreFault.SUPERSEDED:
            return self._finish(request, fault_reason(fault), evaluation, None, started_ns)
        taken = fallback = None
        if self._fallback is None:
            reason = fault_reason(fault)
        else:
            reason, taken, fallback = self._fallback.answer(integration, fault)
        would_deny = evaluation.would_deny
        if reason is not _OK:
            reason, would_deny = (
                (reason, None) if integration.is_outdated else self.policy.limited(evaluation, reason)
            )
        return self._finish(request, reason, evaluation, taken, started_ns, fallback, would_deny)

    def _finish(
        self,
        request: AccessRequest | None,
        reason: Reason,
        evaluation: Evaluation,
        taken: Taken | None,
        started_ns: int,
        fallback: Fallback | None = None,
        would_deny: Reason | None = None,
    ) -> Decision:
        values, integration = self._values, evaluation.integration
        values[self._slots[reason]] += 1
        if integration is not None:
            row = integration.count_slot or self.rows.slot_of(integration)
            if row:
                values[row + self._places[reason]] += 1
                if taken is not None and fallback is None:
                    values[row + RESET_AT_US] = taken.reset_at_us
        if would_deny is not None:
            values[self._shadow_slots[would_deny]] += 1
        elapsed_ns = _now_ns() - started_ns
        self._durations.observe_ns(elapsed_ns)
        decision = Decision(self._next_id(), reason, evaluation, taken, fallback, would_deny)
        if request is not None and (reason is not _OK or would_deny is not None):
            self._note_refusal(request, decision)
        if self.on_decided is not None:
            self.on_decided(request, decision, elapsed_ns)
        return decision

    def _note_refusal(self, request: AccessRequest, decision: Decision) -> None:
        """Keep and report a request that is denied, or that a rule in shadow would deny."""
        is_known = decision.evaluation.integration is not None
        if self.refusals is not None and is_known and decision.reason is not _OK:
            self.refusals.note(request, decision, self.clock_us())
        if self.on_refused is not None:
            self.on_refused(request, decision)


class _Pending:
    """A decision that waits for the shared store."""

    __slots__ = (
        "_context",
        "_decider",
        "_done",
        "_reevaluations",
        "_request",
        "_started_ns",
        "deadline_s",
        "evaluation",
    )

    def __init__(
        self,
        decider: Decider,
        request: AccessRequest,
        evaluation: Evaluation,
        deadline_s: float | None,
        done: Callable[[Decision, Any], None],
        context: object,
        started_ns: int,
    ) -> None:
        self.evaluation = evaluation
        self.deadline_s = deadline_s
        self._decider = decider
        self._request = request
        self._done = done
        self._context = context
        self._started_ns = started_ns
        self._reevaluations = 0

    def settle(self, outcome: Taken | StoreFault) -> None:
        """Answer with *outcome*; decide again if the record is superseded."""
        if type(outcome) is Taken:
            decision = self._decider._settle(self._request, self.evaluation, outcome, self._started_ns)
            self._done(decision, self._context)
        elif outcome is StoreFault.SUPERSEDED and self._reevaluations < REEVALUATIONS_MAX:
            self._decide_again()
        else:
            self._fall_back(outcome)

    def _decide_again(self) -> None:
        """Evaluate the current record, and take from its bucket."""
        self._reevaluations += 1
        self._evaluate()
        evaluation, decider = self.evaluation, self._decider
        if evaluation.integration is not None:
            decider._take_later(self)
            return
        self._done(
            decider._finish(self._request, evaluation.reason, evaluation, None, self._started_ns),
            self._context,
        )

    def _fall_back(self, fault: StoreFault) -> None:
        """Decide without the store, by the current record: the integration may be suspended meanwhile."""
        decider, integration = self._decider, self.evaluation.integration
        assert integration is not None  # only known integrations have buckets
        if decider.snapshot.integrations.get(integration.id) is not integration:
            self._evaluate()
        self._done(decider._fall_back(self._request, self.evaluation, fault, self._started_ns), self._context)

    def _evaluate(self) -> None:
        decider = self._decider
        self.evaluation = decider.policy.evaluate(self._request, decider.snapshot, decider.clock_us())

"""From a request to a decision: policy, then bucket. Shared by every service that decides."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, perf_counter_ns
from typing import NamedTuple, TypeVar

from sidecar.domain.bucket import Taken
from sidecar.domain.decisions import DecisionIds, Reason
from sidecar.domain.policy import AccessRequest, Evaluation, Policy
from sidecar.domain.snapshot import Snapshot
from sidecar.observe.metrics import Metrics
from sidecar.stores.embedded import wall_clock_us
from sidecar.stores.protocols import BucketStore, StoreFault


class Decision(NamedTuple):
    """One answer, complete. `taken` None = no bucket was looked at."""

    id: str
    reason: Reason
    evaluation: Evaluation
    taken: Taken | None


Context = TypeVar("Context")


class Decider:
    """
    Decides requests by the policy and the registry snapshot in force.

    `snapshot` and `policy` are replaced whole when the registry or the configuration changes; a
    decision that has begun goes on with the ones it began with.
    """

    def __init__(
        self,
        policy: Policy,
        snapshot: Snapshot,
        store: BucketStore,
        metrics: Metrics,
        clock_us: Callable[[], int] = wall_clock_us,
        store_timeout_s: float = 0.05,
    ) -> None:
        """Count into *metrics*; expiry is judged by *clock_us*, buckets by the store's own clock."""
        self.policy = policy
        self.snapshot = snapshot
        self.is_draining = False
        self._store = store
        self._clock_us = clock_us
        self._store_timeout_s = store_timeout_s
        self._ids = DecisionIds()
        self._values = metrics.values
        self._slots = {
            reason: metrics.slot("sidecar_decisions_total", reason.verdict.value, reason.word)
            for reason in Reason
        }
        self._duration = metrics.histogram("sidecar_decision_duration_seconds")

    def decide(
        self,
        request: AccessRequest,
        deadline_s: float | None,
        done: Callable[[Decision, Context], None],
        context: Context,
    ) -> Decision | None:
        """
        Decide *request*: at once where the store needs no trip, else by `done(decision, context)`, once.

        *deadline_s* is how long the caller will wait, on the monotonic clock, None = it does not say;
        the store gets no more than its own bound.
        """
        started_ns = perf_counter_ns()
        evaluation = self.policy.evaluate(request, self.snapshot, self._clock_us())
        integration = evaluation.integration
        if integration is None:
            return self._finish(evaluation.reason, evaluation, None, started_ns)
        asked = 1 if evaluation.reason is Reason.OK else 0
        outcome = self._store.take_now(integration.buckets, asked)
        if outcome is not None:
            return self._settle(evaluation, outcome, started_ns)

        def settle(late: Taken | StoreFault) -> None:
            done(self._settle(evaluation, late, started_ns), context)

        timeout_s = self._store_timeout_s
        if deadline_s is not None:
            timeout_s = max(0.0, min(timeout_s, deadline_s - monotonic()))
        self._store.take_later(integration.buckets, asked, timeout_s, settle)
        return None

    def _settle(self, evaluation: Evaluation, outcome: Taken | StoreFault, started_ns: int) -> Decision:
        if type(outcome) is Taken:
            reason = evaluation.reason
            if reason is Reason.OK and not outcome.admitted:
                reason = Reason.RATE_LIMITED
            return self._finish(reason, evaluation, outcome, started_ns)
        return self._finish(_fault_reason(evaluation, outcome), evaluation, None, started_ns)

    def _finish(
        self, reason: Reason, evaluation: Evaluation, taken: Taken | None, started_ns: int
    ) -> Decision:
        self._values[self._slots[reason]] += 1
        self._duration.observe_ns(perf_counter_ns() - started_ns)
        return Decision(self._ids(), reason, evaluation, taken)


def _fault_reason(evaluation: Evaluation, fault: StoreFault | object) -> Reason:
    """A refusal stays what it is without its limits; what would have been allowed fails closed."""
    if evaluation.reason is not Reason.OK:
        return evaluation.reason
    return Reason.OVERLOADED if fault is StoreFault.OVERLOADED else Reason.STORE_UNAVAILABLE

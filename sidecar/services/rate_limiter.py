"""From a request of the rate-limit service to its answer: rules, then counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic, perf_counter_ns
from typing import Final, TypeVar, final

from sidecar.domain.rate_limits.counters import CountersTaken
from sidecar.domain.rate_limits.decisions import (
    InvalidRequestError,
    LimitAnswer,
    LimitRequest,
    LimitStyle,
    Plan,
)
from sidecar.domain.rate_limits.rules import RateLimits
from sidecar.observe.metrics import Metrics
from sidecar.services.decider import STORE_SHARE, STORE_TIMEOUT_S
from sidecar.stores.protocols import CounterStore, StoreFault

HITS: Final = "sidecar_rate_limit_hits_total"
_PLACES: Final = {result: place for place, result in enumerate(("within_limit", "over_limit", "shadow"))}
WITHIN, OVER, SHADOW = _PLACES.values()
"""Places of the counts in a row of `HITS`: the order of its results in the table of metrics."""
UNKNOWN_DOMAIN: Final = "(unknown)"
"""The label of domains that no file has: what callers write is no label."""
NO_RULE: Final = "(none)"
"""The label of descriptors that meet no rule, or one without a limit."""
OVERRIDE: Final = "(override)"
"""The label of limits that requests bring along."""

Context = TypeVar("Context")


class RateLimiter:
    """
    Answers requests by the rules in force, which `put_in_force` replaces whole.

    A call that has begun goes on with the rules that it began with.
    """

    def __init__(
        self,
        limits: RateLimits,
        style: LimitStyle,
        store: CounterStore,
        metrics: Metrics,
        store_timeout_s: float = STORE_TIMEOUT_S,
    ) -> None:
        """Count hits in *store*, and calls in *metrics*."""
        self._style = style
        self._store = store
        self._store_timeout_s = store_timeout_s
        self._metrics = metrics
        self._values = metrics.values
        self._results = {
            result: metrics.slot("sidecar_rate_limit_calls_total", result)
            for result in ("ok", "over_limit", "invalid", "unavailable")
        }
        self._observe_ns = metrics.histogram("sidecar_rate_limit_duration_seconds").observe_ns
        self.on_answered: Callable[[PlannedCall, LimitAnswer | None, int], None] | None = None
        """
        Called with each call, its answer and the time that it took, in ns; answer None = the store was not
        available. It must not raise.
        """
        self.put_in_force(limits)

    def put_in_force(self, limits: RateLimits) -> None:
        """Go by *limits* from now on; each of their rules has counts."""
        row = self._metrics.row
        self._unknown = row(HITS, UNKNOWN_DOMAIN, NO_RULE)
        self._rows = {
            name: {
                NO_RULE: row(HITS, name, NO_RULE),
                OVERRIDE: row(HITS, name, OVERRIDE),
                **{rule.path: row(HITS, name, rule.path) for rule in domain.rules()},
            }
            for name, domain in limits.domains.items()
        }
        self.limits = limits

    def plan(self, request: LimitRequest) -> PlannedCall:
        """
        Find what *request* takes by the rules in force; equal requests may share the result.

        Raises:
            InvalidRequestError: *request* is invalid.
        """
        try:
            plan = Plan(request, self.limits, self._style)
        except InvalidRequestError:
            self._values[self._results["invalid"]] += 1
            raise
        rows = None if plan.domain is None else self._rows[plan.domain.name]
        unlimited = (len(request.descriptors) - len(plan.limited)) * (request.hits or 1)
        if rows is None:
            return PlannedCall(plan, (), self._unknown, unlimited)
        slots = [rows[OVERRIDE if limited.rule is None else limited.rule.path] for limited in plan.limited]
        return PlannedCall(plan, slots, rows[NO_RULE], unlimited)

    def limit(
        self,
        planned: PlannedCall,
        deadline_s: float | None,
        done: Callable[[LimitAnswer | StoreFault, Context], None],
        context: Context,
    ) -> LimitAnswer | StoreFault | None:
        """
        Answer a planned call: at once where the store needs no trip, else by `done(answer, context)`, once.

        *deadline_s* is how long the caller will wait, on the monotonic clock, None = it does not say.
        """
        started_ns = perf_counter_ns()
        plan = planned.plan
        if not plan.takes:
            return self._answer(planned, None, started_ns)
        outcome = self._store.take_now(plan.request.domain, plan.takes)
        if outcome is not None:
            return self._settle(planned, outcome, started_ns)
        timeout_s = self._store_timeout_s
        if deadline_s is not None:
            timeout_s = max(0.0, min(timeout_s, STORE_SHARE * (deadline_s - monotonic())))
        pending = _PendingCall(self._settle, planned, started_ns, done, context)
        self._store.take_later(plan.request.domain, plan.takes, timeout_s, pending.settle)
        return None

    def _settle(
        self, planned: PlannedCall, outcome: CountersTaken | StoreFault, started_ns: int
    ) -> LimitAnswer | StoreFault:
        if type(outcome) is StoreFault:
            self._values[self._results["unavailable"]] += 1
            self._answered(planned, None, started_ns)
            return outcome
        assert type(outcome) is CountersTaken
        return self._answer(planned, outcome, started_ns)

    def _answer(self, planned: PlannedCall, taken: CountersTaken | None, started_ns: int) -> LimitAnswer:
        answer = planned.plan.answer(taken)
        self._count(planned, taken)
        self._values[self._results["over_limit" if answer.is_over else "ok"]] += 1
        self._answered(planned, answer, started_ns)
        return answer

    def _answered(self, planned: PlannedCall, answer: LimitAnswer | None, started_ns: int) -> None:
        elapsed_ns = perf_counter_ns() - started_ns
        self._observe_ns(elapsed_ns)
        if self.on_answered is not None:
            self.on_answered(planned, answer, elapsed_ns)

    def _count(self, planned: PlannedCall, taken: CountersTaken | None) -> None:
        """Count the hits of each limited descriptor at its rule; what overshoots is over, the rest within."""
        values = self._values
        if planned.unlimited_hits:
            values[planned.unlimited_slot + WITHIN] += planned.unlimited_hits
        if taken is None:
            return
        for slot, take, counted in zip(planned.slots, planned.plan.takes, taken.counted, strict=True):
            if not counted.is_over:
                values[slot + WITHIN] += take.hits
                continue
            over = take.hits
            if take.counts_refused:
                over = min(over, counted.used - take.limit)
            values[slot + (SHADOW if take.is_shadow else OVER)] += over
            values[slot + WITHIN] += take.hits - over


@final
class PlannedCall:
    """
    What a request takes, and where its hits are counted.

    `slots` has the metrics of each of the plan's takes; `unlimited_hits` are those of all other descriptors.
    """

    __slots__ = ("plan", "slots", "unlimited_hits", "unlimited_slot")

    def __init__(self, plan: Plan, slots: Sequence[int], unlimited_slot: int, unlimited_hits: int) -> None:
        """See the class."""
        self.plan = plan
        self.slots = slots
        self.unlimited_slot = unlimited_slot
        self.unlimited_hits = unlimited_hits


@final
class _PendingCall:
    """A call that waits for the shared store."""

    __slots__ = ("_answer", "_context", "_done", "_planned", "_started_ns")

    def __init__(
        self,
        answer: Callable[[PlannedCall, CountersTaken | StoreFault, int], LimitAnswer | StoreFault],
        planned: PlannedCall,
        started_ns: int,
        done: Callable[[LimitAnswer | StoreFault, Context], None],
        context: Context,
    ) -> None:
        self._answer = answer
        self._planned = planned
        self._started_ns = started_ns
        self._done = done
        self._context = context

    def settle(self, outcome: CountersTaken | StoreFault) -> None:
        self._done(self._answer(self._planned, outcome, self._started_ns), self._context)

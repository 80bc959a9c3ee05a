"""From a request of the rate-limit service to its answer: rules, then counters."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, perf_counter_ns
from typing import TypeVar, final

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

HITS = "sidecar_rate_limit_hits_total"
_PLACES = {result: place for place, result in enumerate(("within_limit", "over_limit", "shadow"))}
WITHIN, OVER, SHADOW = _PLACES.values()
"""Places of the counts in a row of `HITS`: the order of its results in the table of metrics."""
UNKNOWN_DOMAIN = "(unknown)"
"""The label of domains that no file has: what callers write is no label."""
NO_RULE = "(none)"
"""The label of descriptors that meet no rule, or one without a limit."""
OVERRIDE = "(override)"
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

    def limit(
        self,
        request: LimitRequest,
        deadline_s: float | None,
        done: Callable[[LimitAnswer | StoreFault, Context], None],
        context: Context,
    ) -> LimitAnswer | StoreFault | None:
        """
        Answer *request*: at once where the store needs no trip, else by `done(answer, context)`, once.

        *deadline_s* is how long the caller will wait, on the monotonic clock, None = it does not say.

        Raises:
            InvalidRequestError: *request* cannot be meant.
        """
        started_ns = perf_counter_ns()
        try:
            plan = Plan(request, self.limits, self._style)
        except InvalidRequestError:
            self._values[self._results["invalid"]] += 1
            raise
        if not plan.takes:
            return self._answer(plan, None, self._rows_of(plan), started_ns)
        outcome = self._store.take_now(request.domain, plan.takes)
        if outcome is not None:
            return self._settle(plan, outcome, self._rows_of(plan), started_ns)
        timeout_s = self._store_timeout_s
        if deadline_s is not None:
            timeout_s = max(0.0, min(timeout_s, STORE_SHARE * (deadline_s - monotonic())))
        rows = self._rows_of(plan)
        pending = _PendingCall(self._settle, plan, rows, started_ns, done, context)
        self._store.take_later(request.domain, plan.takes, timeout_s, pending.settle)
        return None

    def _rows_of(self, plan: Plan) -> dict[str, int] | None:
        return None if plan.domain is None else self._rows.get(plan.domain.name)

    def _settle(
        self, plan: Plan, outcome: CountersTaken | StoreFault, rows: dict[str, int] | None, started_ns: int
    ) -> LimitAnswer | StoreFault:
        if type(outcome) is StoreFault:
            self._values[self._results["unavailable"]] += 1
            self._observe_ns(perf_counter_ns() - started_ns)
            return outcome
        assert type(outcome) is CountersTaken
        return self._answer(plan, outcome, rows, started_ns)

    def _answer(
        self, plan: Plan, taken: CountersTaken | None, rows: dict[str, int] | None, started_ns: int
    ) -> LimitAnswer:
        answer = plan.answer(taken)
        self._count(plan, taken, rows)
        self._values[self._results["over_limit" if answer.is_over else "ok"]] += 1
        self._observe_ns(perf_counter_ns() - started_ns)
        return answer

    def _count(self, plan: Plan, taken: CountersTaken | None, rows: dict[str, int] | None) -> None:
        """Count the hits of each limited descriptor at its rule; what overshoots is over, the rest within."""
        values = self._values
        unlimited = len(plan.request.descriptors) - len(plan.limited)
        if unlimited:
            hits = plan.request.hits or 1
            values[(self._unknown if rows is None else rows[NO_RULE]) + WITHIN] += unlimited * hits
        if taken is None or rows is None:
            return
        for limited, counted in zip(plan.limited, taken.counted, strict=True):
            take = limited.take
            row = rows[OVERRIDE] if limited.rule is None else rows.get(limited.rule.path, rows[NO_RULE])
            if not counted.is_over:
                values[row + WITHIN] += take.hits
                continue
            over = take.hits
            if take.counts_refused:
                over = min(over, counted.used - take.limit)
            values[row + (SHADOW if take.is_shadow else OVER)] += over
            values[row + WITHIN] += take.hits - over


@final
class _PendingCall:
    """A call that waits for the shared store."""

    __slots__ = ("_answer", "_context", "_done", "_plan", "_rows", "_started_ns")

    def __init__(
        self,
        answer: Callable[
            [Plan, CountersTaken | StoreFault, dict[str, int] | None, int], LimitAnswer | StoreFault
        ],
        plan: Plan,
        rows: dict[str, int] | None,
        started_ns: int,
        done: Callable[[LimitAnswer | StoreFault, Context], None],
        context: Context,
    ) -> None:
        self._answer = answer
        self._plan = plan
        self._rows = rows
        self._started_ns = started_ns
        self._done = done
        self._context = context

    def settle(self, outcome: CountersTaken | StoreFault) -> None:
        self._done(self._answer(self._plan, outcome, self._rows, self._started_ns), self._context)

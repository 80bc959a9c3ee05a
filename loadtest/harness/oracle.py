"""Judges a finished run: were the answers right? Speed does not matter here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.harness.scenario import KINDS, Scenario
from loadtest.harness.suspensions import Suspensions, judge_suspensions
from loadtest.harness.tally import (
    MISSING_HEADER,
    SECOND_NS,
    UNANSWERED,
    UNAVAILABLE,
    UNAVAILABLE_NS,
    Tally,
)
from loadtest.harness.usage import Sample, growth

STARVED_SHARE = 0.9
"""A bucket that was asked for far more than it holds must have admitted this share of its nominal limit."""
SHOWN_MAX = 20
WARM_UP_SHARE = 0.25
"""Memory and descriptors may grow in this share of a soak."""
FD_GROWTH_MAX = 1.0
NORMAL_S = 0.5
"""An outage has ended when so long no call was answered 503."""

Outages = Sequence[tuple[float, float]]
"""Seconds since the start between which 503 is right, with the time to recover."""


@dataclass(frozen=True)
class Fault:
    """One kind of wrong answer: what promise it breaks, how often, and examples."""

    what: str
    count: int
    examples: Sequence[str] = ()


@dataclass(frozen=True)
class Admission:
    """
    What one integration was admitted, beside the most that its limit allows in that time.

    `nominal` is burst + rate x time (fixed window: limit x windows touched); `most` has another burst for
    each failover, whose successor may lack the last takes. `answered` includes refusals.
    """

    integration: int
    admitted: int
    answered: int
    lost: int
    nominal: float
    most: float

    @property
    def ratio(self) -> float:
        """Admitted requests as a share of the nominal limit; above 1 is over-admission."""
        return self.admitted / self.nominal if self.nominal else 0.0


@dataclass
class Verdict:
    """The oracle's judgment; a run with a fault has failed."""

    faults: list[Fault] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    """What was checked, with the number of answers."""
    suspensions: dict[str, Any] = field(default_factory=dict)
    """See `judge_suspensions`; empty without suspensions."""

    @property
    def is_right(self) -> bool:
        """Whether every answer was right."""
        return not self.faults

    def as_json(self) -> dict[str, object]:
        """Return the judgment as JSON values."""
        return {
            "is_right": self.is_right,
            "faults": [asdict(fault) for fault in self.faults],
            "checks": self.checks,
            "suspensions": self.suspensions,
        }


def outages_of(scenario: Scenario) -> list[tuple[float, float]]:
    """Return the outages that events begin and end; a killed primary with replicas is not among them."""
    gone = ("pause-redis", "kill-redis") if scenario.sidecar.store == "redis" else ("pause-redis",)
    outages, gone_s = [], math.inf
    for event in sorted(scenario.events, key=lambda event: event.at_s):
        if event.do in gone:
            gone_s = min(gone_s, event.at_s)
        elif event.do in ("resume-redis", "start-redis") and gone_s < math.inf:
            outages.append((gone_s, event.at_s + scenario.oracle.recovery_s))
            gone_s = math.inf
    return [*outages, (gone_s, math.inf)] if gone_s < math.inf else outages


def normal_again_s(tally: Tally, after_s: float) -> float:
    """Return when the last of the calls was sent that got 503 in the outage around *after_s*."""
    last_s = after_s
    for at_s in sorted(number * UNAVAILABLE_NS / SECOND_NS for number in tally.unavailable):
        if last_s < at_s <= last_s + NORMAL_S:
            last_s = at_s
    return last_s


def admissions(scenario: Scenario, tally: Tally, epoch_s: float, failovers: int = 0) -> list[Admission]:
    """
    Return what each integration with an answer was admitted, and its nominal limit.

    *epoch_s* is the time of day at which CLOCK_MONOTONIC was 0; fixed windows begin on the time of day.
    """
    is_alone = scenario.sidecar.store == "redis"  # and loses its data
    refills = 1 + sum(event.do == "start-redis" for event in scenario.events if is_alone)
    found = []
    for number, admitted in enumerate(tally.admitted):
        answered = admitted + tally.refused[number]
        if answered:
            first_s, last_s = tally.first_ns[number] / 1e9, tally.last_ns[number] / 1e9
            nominal = _nominal(scenario, first_s + epoch_s, max(first_s, last_s) + epoch_s, refills)
            most = nominal + failovers * scenario.burst
            found.append(Admission(number, admitted, answered, tally.lost[number], nominal, most))
    return found


def _nominal(scenario: Scenario, first_s: float, last_s: float, refills: int) -> float:
    limits = scenario.limits
    if limits.algorithm == "fixed_window":
        windows = last_s // limits.unit_s - first_s // limits.unit_s + 1
        return limits.rpm * (windows + refills - 1)
    return scenario.burst * refills + limits.rpm * (last_s - first_s) / limits.unit_s


def judge(
    scenario: Scenario,
    tally: Tally,
    totals: Mapping[tuple[int, int], int],
    admitted: Sequence[Admission],
    suspensions: Suspensions,
    outages: Outages,
) -> Verdict:
    """Return the verdict on a run; *totals* are its answers by kind and status."""
    verdict, suspends = Verdict(), any(event.do == "suspend" for event in scenario.events)
    verdict.faults += _wrong_answers(tally)
    verdict.faults += _admission_faults(scenario, admitted, suspends)
    verdict.faults += _lost_calls(scenario, tally, totals, outages)
    answers = sum(totals.values())
    verdict.checks = [
        f"{answers:,} calls: every answer had a status that is right for its kind"
        if scenario.protocol != "rls"
        else f"{answers:,} calls: every answer was OK or OVER_LIMIT",
        f"{len(admitted):,} integrations: admitted requests against burst + rate × time",
    ]
    if scenario.oracle.headers:
        verdict.checks.append("limit, remaining and reset of every answer; no reset in the past or too late")
    if suspends:
        targets = scenario.sidecar.count
        verdict.suspensions, wrong = judge_suspensions(suspensions, tally.watched, targets)
        verdict.faults += [Fault(what, count) for what, count in wrong.items()]
        figures = verdict.suspensions
        verdict.checks.append(
            f"{figures['made']:,} suspensions: {figures['sent_after']:,} calls sent after the commit"
        )
    return verdict


def _wrong_answers(tally: Tally) -> Iterator[Fault]:
    for what, count in sorted(tally.wrong.items()):
        text = what
        if what.startswith("verdict/"):
            _, kind, status = what.split("/")
            text = f"a request of kind {KINDS[int(kind)]} got status {status}"
        elif what == MISSING_HEADER:
            text = f"{what}: set oracle.headers = false if the server sends no X-RateLimit-*"
        yield Fault(text, count, tally.samples.get(what, ()))


def _admission_faults(
    scenario: Scenario, admitted: Sequence[Admission], has_suspensions: bool
) -> Iterator[Fault]:
    over = [item for item in admitted if item.admitted > item.most]
    if over:
        yield Fault("more requests were admitted than the limit allows", len(over), _shown(over))
    if not scenario.oracle.exclusive or has_suspensions:
        return
    early = [
        item
        for item in admitted
        if item.admitted < min(item.answered, scenario.burst) - item.lost
        or (
            item.answered > scenario.burst + 2 * (item.nominal - scenario.burst)
            and item.admitted < STARVED_SHARE * item.nominal - item.lost - 2
            and scenario.limits.algorithm == "token_bucket"
        )
    ]
    if early:
        yield Fault("requests were refused although tokens were left", len(early), _shown(early))


def _shown(items: Sequence[Admission]) -> list[str]:
    return [
        f"integration {item.integration}: admitted {item.admitted:,} of {item.answered:,},"
        f" nominal {item.nominal:,.1f}"
        for item in items[:SHOWN_MAX]
    ]


def _lost_calls(
    scenario: Scenario, tally: Tally, totals: Mapping[tuple[int, int], int], outages: Outages
) -> Iterator[Fault]:
    by_status: Counter[int] = Counter()
    for (_, status), count in totals.items():
        by_status[status] += count
    calls = by_status.total()
    unanswered = "calls without an answer, or with a gRPC error"
    if scenario.target is not None and by_status[UNANSWERED] == calls:
        unanswered = (
            f"no call was answered: does {scenario.target.address} serve protocol {scenario.protocol!r},"
            " with or without TLS as the address says?"
        )
    unexpected = sum(
        count
        for number, count in tally.unavailable.items()
        if not any(start_s - 1 <= number * UNAVAILABLE_NS / SECOND_NS <= end_s for start_s, end_s in outages)
    )
    for what, count, share_max in (
        ("503: the store or the server was not available", unexpected, scenario.oracle.unavailable_share_max),
        (unanswered, by_status[UNANSWERED], scenario.oracle.unanswered_share_max),
    ):
        if count > share_max * calls:
            yield Fault(f"{what} (at most {share_max:.2%} of {calls:,} calls)", count)
    if outages and not by_status[UNAVAILABLE]:
        yield Fault("the store was gone, but no answer said so: the outage did not happen", 1)


def growth_faults(scenario: Scenario, samples: Mapping[str, Sequence[Sample]]) -> Iterator[Fault]:
    """Yield a fault for each group of processes whose memory or descriptors grew after the warm-up."""
    for group, taken in samples.items():
        first_s = taken[0].at_s + WARM_UP_SHARE * (taken[-1].at_s - taken[0].at_s)
        kept = [sample for sample in taken if sample.at_s >= first_s]
        grown_mb = growth([(sample.at_s, sample.rss_bytes / 1e6) for sample in kept])
        if grown_mb > scenario.oracle.rss_growth_max_mb:
            yield Fault(f"memory of {group} grew by {grown_mb:.1f} MB after the warm-up", 1)
        grown_fds = growth([(sample.at_s, sample.fds) for sample in kept])
        if grown_fds >= FD_GROWTH_MAX:
            yield Fault(f"descriptors of {group} grew by {grown_fds:.1f} after the warm-up", 1)

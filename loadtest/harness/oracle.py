"""Judges a finished run: were the answers right? Speed does not matter here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from loadtest.harness.scenario import KINDS, Scenario
from loadtest.harness.tally import UNANSWERED, UNAVAILABLE, Tally
from loadtest.harness.usage import Sample, growth

STARVED_SHARE = 0.9
"""A bucket that was asked for far more than it holds must have admitted this share of its nominal limit."""
SHOWN_MAX = 20
WARM_UP_SHARE = 0.25
"""Memory and descriptors may grow in this share of a soak."""
FD_GROWTH_MAX = 1.0


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

    `nominal` is burst + rate x time (fixed window: limit x windows touched). `answered` includes refusals.
    """

    integration: int
    admitted: int
    answered: int
    lost: int
    nominal: float

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
        }


def outages_of(scenario: Scenario) -> list[tuple[float, float]]:
    """Return the seconds since the start between which the store is gone, with the time to recover."""
    outages, gone_s = [], math.inf
    for event in sorted(scenario.events, key=lambda event: event.at_s):
        if event.do in ("pause-redis", "kill-redis"):
            gone_s = min(gone_s, event.at_s)
        elif event.do in ("resume-redis", "start-redis") and gone_s < math.inf:
            outages.append((gone_s, event.at_s + scenario.oracle.recovery_s))
            gone_s = math.inf
    return [*outages, (gone_s, math.inf)] if gone_s < math.inf else outages


def admissions(scenario: Scenario, tally: Tally, epoch_s: float) -> list[Admission]:
    """
    Return what each integration with an answer was admitted, and its nominal limit.

    *epoch_s* is the time of day at which CLOCK_MONOTONIC was 0; fixed windows begin on the time of day.
    """
    refills = 1 + sum(event.do == "start-redis" for event in scenario.events)  # a Redis that lost its data
    found = []
    for number, admitted in enumerate(tally.admitted):
        answered = admitted + tally.refused[number]
        if answered:
            first_s, last_s = tally.first_ns[number] / 1e9, tally.last_ns[number] / 1e9
            nominal = _nominal(scenario, first_s + epoch_s, max(first_s, last_s) + epoch_s, refills)
            found.append(Admission(number, admitted, answered, tally.lost[number], nominal))
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
    suspended: Mapping[int, tuple[int, int]],
) -> Verdict:
    """
    Return the verdict on a run.

    *totals* are its answers by kind and status; *suspended* has when each suspension was requested and
    committed (CLOCK_MONOTONIC).
    """
    verdict = Verdict()
    verdict.faults += _wrong_answers(tally)
    verdict.faults += _admission_faults(scenario, admitted, bool(suspended))
    verdict.faults += _lost_calls(scenario, tally, totals)
    if suspended:
        verdict.faults += _suspension_faults(tally, suspended)
    answers = sum(totals.values())
    verdict.checks = [
        f"{answers:,} calls: every answer had a status that is right for its kind"
        if scenario.protocol != "rls"
        else f"{answers:,} calls: every answer was OK or OVER_LIMIT",
        f"{len(admitted):,} integrations: admitted requests against burst + rate × time",
    ]
    if scenario.oracle.headers:
        verdict.checks.append("limit, remaining and reset of every answer; no reset in the past or too late")
    for number, (_, committed_ns) in suspended.items():
        after = sum(sent_ns > committed_ns for owner, sent_ns, _ in tally.watched if owner == number)
        verdict.checks.append(f"{after:,} calls of suspended integration {number} after the commit")
    return verdict


def _wrong_answers(tally: Tally) -> Iterator[Fault]:
    for what, count in sorted(tally.wrong.items()):
        text = what
        if what.startswith("verdict/"):
            _, kind, status = what.split("/")
            text = f"a request of kind {KINDS[int(kind)]} got status {status}"
        yield Fault(text, count, tally.samples.get(what, ()))


def _admission_faults(
    scenario: Scenario, admitted: Sequence[Admission], has_suspensions: bool
) -> Iterator[Fault]:
    over = [item for item in admitted if item.admitted > item.nominal]
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


def _lost_calls(scenario: Scenario, tally: Tally, totals: Mapping[tuple[int, int], int]) -> Iterator[Fault]:
    by_status: Counter[int] = Counter()
    for (_, status), count in totals.items():
        by_status[status] += count
    calls = by_status.total()
    outages = outages_of(scenario)
    unexpected = sum(
        count
        for second, count in tally.unavailable.items()
        if not any(start_s - 1 <= second <= end_s for start_s, end_s in outages)
    )
    for what, count, share_max in (
        ("503: the store or the server was not available", unexpected, scenario.oracle.unavailable_share_max),
        ("calls without an answer", by_status[UNANSWERED], scenario.oracle.unanswered_share_max),
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


def _suspension_faults(tally: Tally, suspended: Mapping[int, tuple[int, int]]) -> Iterator[Fault]:
    for number, (called_ns, committed_ns) in suspended.items():
        calls = [(sent_ns, status) for owner, sent_ns, status in tally.watched if owner == number]
        after = [status for sent_ns, status in calls if sent_ns > committed_ns]
        early = sum(status == 403 and sent_ns < called_ns - 1_000_000_000 for sent_ns, status in calls)
        if sum(status in (200, 429) for status in after):
            yield Fault(
                f"integration {number} was let in after its suspension was committed",
                sum(status in (200, 429) for status in after),
            )
        if not after:
            yield Fault(f"integration {number} sent nothing after its suspension: raise the rate", 1)
        if early:
            yield Fault(f"integration {number} was denied before it was suspended", early)

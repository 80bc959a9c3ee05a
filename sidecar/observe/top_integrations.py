"""
The series of single integrations on /metrics: those with the most traffic, and everything else in one series.

The counts of a series begin when its integration is listed, never fall, and add up to all decisions at every
scrape: what is in no series of an integration is in that of `OTHER_ROW`. A worker decides while it is read,
so its total can be some decisions ahead of its rows. These are counted as `OTHER_ROW` and stay there; the
listed integrations are shown as many decisions late. When a busier integration takes the
place of a listed one, the counts of the latter move to `FORMER`, so that no rate of another series jumps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import time_ns

from sidecar.domain.bucket import interval_us_of
from sidecar.domain.decisions import Reason
from sidecar.observe.integration_rows import (
    CHALLENGE_FACTOR,
    LIMIT_RPM,
    LISTED_DEFAULT,
    RESET_AT_US,
    RESULTS,
    ROW_COUNTS,
    SPAN_US,
    UNIDENTIFIED,
    merged,
    result_of,
)
from sidecar.observe.rows import OTHER_ROW, Row, Rows

FORMER = "(former)"
"""The label of the counts of integrations that are no longer listed."""
UNKNOWN = "(unknown)"
"""The label of callers without a valid key."""
SAMPLE_US = 5_000_000
"""Minimum time between two samples of traffic: the scrapes, unless they are more frequent."""
MINUTE_US = 60_000_000
SCORE_KEPT = 0.8
"""The share of the former score at each sample: only the last few samples count."""
DECISIONS = "sidecar_integration_decisions_total"
LIMIT = "sidecar_integration_limit_rpm"
BURST = "sidecar_integration_burst"
ADMITTED = "sidecar_integration_admitted_ratio"
REMAINING = "sidecar_integration_remaining_ratio"
USED = "sidecar_integration_used_ratio"
LIMITED_SINCE = "sidecar_integration_limited_since_timestamp_seconds"
_NOTHING = (0,) * ROW_COUNTS
_ALLOWED, _LIMITED = RESULTS.index("allowed"), RESULTS.index("limited")


@dataclass(slots=True)
class _Listed:
    """
    An integration with its own series; times by the wall clock, 0 = never.

    `shown` are the counts that were exported, at most `counts`. `admitted_ratio` is the largest share of
    burst + limit x time that was admitted between two samples of the last minute; `steady` are those under
    the same quota, without the counts from before the first sample, whose time is not known.
    """

    allowed: deque[tuple[int, int]]  # time and count, for the last minute
    counts: list[int] = field(default_factory=lambda: [0] * len(RESULTS))
    shown: list[int] = field(default_factory=lambda: [0] * len(RESULTS))
    limited: int = 0  # at the last sample
    limited_since_us: int = 0
    limited_at_us: int = 0
    quota: tuple[int, int] = (0, 0)  # requests per minute, refill time of the burst in us
    steady: deque[tuple[int, int]] = field(default_factory=deque)
    admitted_ratio: float = 0.0

    def sample(self, now_us: int, quota: tuple[int, int]) -> None:
        """Keep what the gauges of the last minute need."""
        if quota != self.quota:
            self.quota = quota
            self.steady.clear()
        while self.steady and not now_us - MINUTE_US <= self.steady[0][0] < now_us:
            self.steady.popleft()
        self.admitted_ratio = self._admitted_ratio(now_us)
        self.steady.append((now_us, self.counts[_ALLOWED]))
        self.allowed.append((now_us, self.counts[_ALLOWED]))
        while len(self.allowed) > 1 and self.allowed[1][0] <= now_us - MINUTE_US:
            self.allowed.popleft()
        if self.counts[_LIMITED] > self.limited:
            self.limited_since_us = self.limited_since_us or now_us
            self.limited_at_us = now_us
        elif now_us - self.limited_at_us > MINUTE_US:
            self.limited_since_us = 0
        self.limited = self.counts[_LIMITED]

    def _admitted_ratio(self, now_us: int) -> float:
        limit_rpm, span_us = self.quota
        if not limit_rpm:
            return 0.0
        interval_us, allowed = interval_us_of(limit_rpm), self.counts[_ALLOWED]
        return max(
            ((allowed - count) * interval_us / (span_us + now_us - at_us) for at_us, count in self.steady),
            default=0.0,
        )

    def allowed_in_last_minute(self, now_us: int) -> float:
        """Requests allowed in the last minute, or since the integration is listed if that is shorter."""
        since_us, count = self.allowed[0]
        share = min(1.0, MINUTE_US / max(1, now_us - since_us))
        return (self.counts[_ALLOWED] - count) * share


class TopIntegrations:
    """Chooses at most `listed_max` integrations and keeps their series, from the rows of all processes."""

    def __init__(self, clock_us: Callable[[], int] = lambda: time_ns() // 1_000) -> None:
        """List nothing yet."""
        self.listed_max = LISTED_DEFAULT
        self._clock_us = clock_us
        self._listed: dict[str, _Listed] = {}
        self._former = [0] * len(RESULTS)
        self._other = [0] * len(RESULTS)
        self._totals: dict[str, list[int]] = {}
        self._scores: dict[str, float] = {}
        self._sampled: dict[str, int] = {}
        self._sampled_us = 0

    def update(self, sources: Sequence[Rows]) -> None:
        """Add what the rows *sources* of all processes have counted since the last update."""
        totals, now_us = merged(sources), self._clock_us()
        if len(self._listed) < self.listed_max:
            self._fill(totals, now_us)
        for id, listed in self._listed.items():
            before, now = self._totals.get(id, _NOTHING), totals.get(id, _NOTHING)
            for place in range(len(RESULTS)):
                # A row that was handed over to another integration and back has started again from 0.
                listed.counts[place] += max(0, now[place] - before[place])
        self._totals = totals
        if not 0 <= now_us - self._sampled_us < SAMPLE_US:
            self._sample(now_us)

    def rebase(self, sources: Sequence[Rows]) -> None:
        """Compare the next update with *sources*, because a process ended, with its rows."""
        self._totals = merged(sources)

    def _fill(self, totals: Mapping[str, Sequence[int]], now_us: int) -> None:
        """List integrations while there is room."""
        unlisted = sorted(totals.keys() - self._listed.keys(), key=lambda id: -_count(totals[id]))
        for id in unlisted[: self.listed_max - len(self._listed)]:
            self._listed[id] = _Listed(deque([(now_us, 0)]))

    def _sample(self, now_us: int) -> None:
        sampled = {id: _count(counts) for id, counts in self._totals.items()}
        self._scores = {
            id: SCORE_KEPT * self._scores.get(id, 0.0) + max(0, count - self._sampled.get(id, 0))
            for id, count in sampled.items()
        }
        self._sampled, self._sampled_us = sampled, now_us
        for id, listed in self._listed.items():
            counts = self._totals.get(id, _NOTHING)
            listed.sample(now_us, (counts[LIMIT_RPM], counts[SPAN_US]))
        self._replace()

    def _replace(self) -> None:
        """List busier integrations in the place of quieter ones."""
        scores = self._scores
        busiest = sorted(scores.keys() - self._listed.keys(), key=lambda id: -scores[id])
        quietest = sorted(self._listed, key=lambda id: scores.get(id, 0.0))
        for id, former in zip(busiest, quietest, strict=False):
            if scores[id] <= CHALLENGE_FACTOR * scores.get(former, 0.0):
                return
            counts = self._listed.pop(former).shown
            self._former = [sum(pair) for pair in zip(self._former, counts, strict=True)]
            self._listed[id] = _Listed(deque([(self._sampled_us, 0)]))

    def samples(self, by_reason: Mapping[Reason, int]) -> dict[str, list[tuple[Row, float]]]:
        """
        Labels and values of each metric of single integrations.

        *by_reason* are all decisions so far, read after the rows of the last update.
        """
        now_us = self._clock_us()
        known = [(id, listed, self._totals.get(id, _NOTHING)) for id, listed in self._listed.items()]
        # An integration that has no row now has no known limit.
        limited = [(id, listed, counts) for id, listed, counts in known if counts[LIMIT_RPM]]
        return {
            DECISIONS: list(self._decisions(by_reason)),
            LIMIT: [((id,), counts[LIMIT_RPM]) for id, _, counts in limited],
            BURST: [
                ((id,), counts[SPAN_US] // interval_us_of(counts[LIMIT_RPM])) for id, _, counts in limited
            ],
            ADMITTED: [((id,), listed.admitted_ratio) for id, listed, _ in limited],
            REMAINING: [((id,), _remaining_ratio(counts, now_us)) for id, _, counts in limited],
            USED: [
                ((id,), listed.allowed_in_last_minute(now_us) / counts[LIMIT_RPM])
                for id, listed, counts in limited
            ],
            LIMITED_SINCE: [((id,), listed.limited_since_us / 1e6) for id, listed, _ in known],
        }

    def _decisions(self, by_reason: Mapping[Reason, int]) -> Iterator[tuple[Row, float]]:
        rest = dict.fromkeys(RESULTS, 0)
        unknown = dict.fromkeys(RESULTS, 0)
        for reason, count in by_reason.items():
            (unknown if reason in UNIDENTIFIED else rest)[result_of(reason)] += count
        for place, result in enumerate(RESULTS):
            self._show(place, rest[result])
        counted = {id: listed.shown for id, listed in self._listed.items()}
        counted |= {FORMER: self._former, OTHER_ROW: self._other, UNKNOWN: list(unknown.values())}
        for id, counts in counted.items():
            for result, count in zip(RESULTS, counts, strict=True):
                yield (id, result), count

    def _show(self, place: int, total: int) -> None:
        """Divide *total* decisions with one result among the series, so that none of them falls."""
        other = total - self._former[place] - sum(listed.counts[place] for listed in self._listed.values())
        held_back = max(0, self._other[place] - other)
        self._other[place] = other + held_back
        for listed in self._listed.values():
            late = min(held_back, listed.counts[place] - listed.shown[place])
            listed.shown[place] = listed.counts[place] - late
            held_back -= late


def _remaining_ratio(counts: Sequence[int], now_us: int) -> float:
    return max(0.0, 1.0 - max(0, counts[RESET_AT_US] - now_us) / counts[SPAN_US])


def _count(counts: Sequence[int]) -> int:
    return sum(counts[: len(RESULTS)])

"""
The most that a bucket may admit in a run, and the least that it must, so that a correct fleet always passes.

A limit of L per minute with a burst of B admits B + L·T/60 in T seconds on the store's clock. A client cannot
see when the store took a token, but it can bound the time:

    most   T is from before the first request was sent until after the last answer was received.
    least  T is from when the bucket was seen empty until a request sent later was refused again: all tokens
           refilled in between were taken, and the whole burst before. The run must admit 99 % of that.

Between two refusals the bucket may have been full if they are far enough apart; tokens that would have been
refilled meanwhile are subtracted from the least.

A request without an answer may have taken a token: it counts as admitted for the least, but not for the most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from sidecar.domain.bucket import Quota

SHARE_MIN_PERCENT = 99
SECONDS_PER_MINUTE = 60
US_PER_S = 1_000_000
NS_PER_US = 1_000


class Finding(Enum):
    """The result of a run for one bucket."""

    FULFILLED = "fulfilled"
    OVER_ADMITTED = "over-admitted"
    UNDER_ADMITTED = "under-admitted"
    MISANSWERED = "misanswered"
    """Some requests got an answer other than 200, 429 or 503."""
    NOT_SATURATED = "not saturated"
    """The load did not empty the bucket, or its store did not answer: the run proves nothing."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A bucket's limit per minute and burst, and the least whole tokens that it held at the start."""

    limit_rpm: int
    burst: int
    held_at_start: int

    @property
    def fills_ns(self) -> int:
        """The shortest time from a refusal, with less than one token left, to a full bucket."""
        return (self.burst - 1) * Quota.per_minute(self.limit_rpm).interval_us * NS_PER_US


@dataclass(slots=True)
class Count:
    """The outcomes of one bucket's requests."""

    admitted: int = 0
    refused: int = 0
    failed: int = 0
    """503: the store may have taken a token."""
    unanswered: int = 0
    """The connection was lost before the answer: the store may have taken a token."""
    other: dict[int, int] = field(default_factory=dict)
    """By HTTP status: answers that a conforming sidecar does not give."""
    refused_ns: int = 0
    """When the last refused request was sent, on the monotonic clock; 0 = none was refused."""
    fills_ns: int = 0
    """See `Terms.fills_ns`."""
    idle_ns: int = 0
    """How long the bucket may have been full since the first refusal."""

    @property
    def total(self) -> int:
        """The number of requests."""
        return self.admitted + self.refused + self.failed + self.unanswered + sum(self.other.values())

    @property
    def unknown(self) -> int:
        """The number of requests that may have taken a token without being admitted."""
        return self.failed + self.unanswered

    def note(self, status: int, sent_ns: int, received_ns: int) -> None:
        """Count one answer by its HTTP status; 0 = no answer."""
        if status == 429:
            self.refused += 1
            if self.refused_ns:
                self.idle_ns += max(0, received_ns - self.refused_ns - self.fills_ns)
            self.refused_ns = max(self.refused_ns, sent_ns)
        elif status == 200:
            self.admitted += 1
        elif status == 503:
            self.failed += 1
        elif status == 0:
            self.unanswered += 1
        else:
            self.other[status] = self.other.get(status, 0) + 1


@dataclass(frozen=True, slots=True)
class Window:
    """
    A bucket's times on its store's clock, in µs.

    `outer_us` covers every take; `empty_us` is between two moments at which the bucket was empty, None = it
    was not seen empty twice.
    """

    outer_us: int
    empty_us: int | None


@dataclass(frozen=True, slots=True)
class Judgment:
    """The most and the least that a bucket should have admitted, and the finding."""

    most: int
    least: int | None
    finding: Finding

    @property
    def is_fulfilled(self) -> bool:
        """Whether the run proved that the bucket kept its limit."""
        return self.finding is Finding.FULFILLED


def most_admitted(terms: Terms, span_us: int) -> int:
    """
    B + L·T/60, rounded down.

    >>> most_admitted(Terms(90, 5, 5), 2_000_000)
    8
    """
    return terms.burst + terms.limit_rpm * span_us // (SECONDS_PER_MINUTE * US_PER_S)


def least_admitted(terms: Terms, empty_us: int) -> int:
    """The tokens at the start plus those refilled, by the interval in whole µs that buckets use."""
    return terms.held_at_start + empty_us // Quota.per_minute(terms.limit_rpm).interval_us


def judge(terms: Terms, window: Window, count: Count) -> Judgment:
    """
    Compare what one bucket admitted with what it should have.

    >>> judge(Terms(60, 5, 5), Window(2_100_000, 2_000_000), Count(admitted=8)).finding
    <Finding.OVER_ADMITTED: 'over-admitted'>
    """
    most = most_admitted(terms, window.outer_us)
    least = None
    if window.empty_us is not None:
        least = least_admitted(terms, max(0, window.empty_us - count.idle_ns // NS_PER_US))
    if count.admitted > most:
        finding = Finding.OVER_ADMITTED
    elif count.other:
        finding = Finding.MISANSWERED
    elif least is None:
        finding = Finding.NOT_SATURATED
    elif 100 * (count.admitted + count.unknown) < SHARE_MIN_PERCENT * least:
        finding = Finding.UNDER_ADMITTED
    else:
        finding = Finding.FULFILLED
    return Judgment(most, least, finding)

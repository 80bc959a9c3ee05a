"""
What a bucket may admit in a run, and what it must: both sides such that no right fleet is ever accused.

The promise is B + L·T/60 for a limit of L a minute, a burst of B and T seconds on the store's clock. A
client cannot see the moments at which the store took, but it can put bounds around them:

    most   T from before the first request was sent until after the last answer came.
    least  from when the bucket was seen empty until a request sent later was refused again: in between
           whatever flowed in was taken, and before it the whole burst. Of that, 99 % is asked for.

Between two refusals that lie so far apart that the bucket may have been full, what flowed in may have been
lost, because nobody asked; as much is taken off the least.

Answers that were lost may have taken a token, so for the least they count as admitted, for the most they
do not.
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
    """What a run found of one bucket."""

    FULFILLED = "fulfilled"
    OVER_ADMITTED = "over-admitted"
    UNDER_ADMITTED = "under-admitted"
    MISANSWERED = "misanswered"
    """Some requests got another answer than 200, 429 or 503, or none within its time."""
    NOT_SATURATED = "not saturated"
    """The load was not enough to empty the bucket, or its store did not answer: nothing is proven."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A bucket's limit per minute and burst, and the whole tokens that it certainly held at the start."""

    limit_rpm: int
    burst: int
    held_at_start: int

    @property
    def fills_ns(self) -> int:
        """How long the bucket takes at least to be full after it refused, when it held less than a token."""
        return (self.burst - 1) * Quota.per_minute(self.limit_rpm).interval_us * NS_PER_US


@dataclass(slots=True)
class Count:
    """How the requests of one bucket ended."""

    admitted: int = 0
    refused: int = 0
    failed: int = 0
    """503: the store may have taken the token or not."""
    unanswered: int = 0
    """The connection was lost before the answer: the same."""
    other: dict[int, int] = field(default_factory=dict)
    """By HTTP status: answers that a conforming sidecar does not give."""
    refused_ns: int = 0
    """When the request that was refused last had been sent, on the monotonic clock; 0 = none was."""
    fills_ns: int = 0
    """How long the bucket takes at least to be full after it refused."""
    idle_ns: int = 0
    """How long it may have been full since it refused first."""

    @property
    def total(self) -> int:
        """All requests."""
        return self.admitted + self.refused + self.failed + self.unanswered + sum(self.other.values())

    @property
    def unknown(self) -> int:
        """Requests that may have taken a token without being admitted."""
        return self.failed + self.unanswered

    def note(self, status: int, sent_ns: int, received_ns: int) -> None:
        """Count one answer by its HTTP status; 0 = none came."""
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
    A bucket's time on its store's clock, in µs.

    `outer_us` holds every take; `empty_us` lies between two moments at which the bucket was empty, None =
    that was not seen twice.
    """

    outer_us: int
    empty_us: int | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a bucket may and must have admitted, and what that makes of what it did."""

    most: int
    least: int | None
    finding: Finding

    @property
    def is_fulfilled(self) -> bool:
        """Whether the promise was kept, and seen to be."""
        return self.finding is Finding.FULFILLED


def most_admitted(terms: Terms, span_us: int) -> int:
    """
    B + L·T/60, rounded down: requests are whole.

    >>> most_admitted(Terms(90, 5, 5), 2_000_000)
    8
    """
    return terms.burst + terms.limit_rpm * span_us // (SECONDS_PER_MINUTE * US_PER_S)


def least_admitted(terms: Terms, empty_us: int) -> int:
    """What was there and what flowed in, by the interval in whole µs that buckets count with."""
    return terms.held_at_start + empty_us // Quota.per_minute(terms.limit_rpm).interval_us


def judge(terms: Terms, window: Window, count: Count) -> Judgement:
    """
    Judge one bucket.

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
    return Judgement(most, least, finding)

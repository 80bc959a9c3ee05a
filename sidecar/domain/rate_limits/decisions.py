"""
From a ShouldRateLimit request to what it takes, and from what was taken to the answer.

The statuses, their order and their fields are those of envoyproxy/ratelimit; docs/integrate/
migrating-from-ratelimit.md lists what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from sidecar.domain.rate_limits.counters import (
    HITS_MAX,
    Algorithm,
    Counted,
    CountersTaken,
    CounterTake,
    is_refused,
    remaining_of,
    reset_s_of,
)
from sidecar.domain.rate_limits.rules import Domain, Entries, Limit, RateLimits, Rule, Unit, counter_of
from sidecar.domain.values import Value

DESCRIPTORS_MAX: Final = 64
"""Of one call. A proxy sends one for each of its rules; each is a key in the store's call."""
ENTRIES_MAX: Final = 32
"""Of one descriptor: as deep as a tree of rules can be."""
ENTRY_CHARS_MAX: Final = 65_536
"""Of a key or a value; longer than the longest header that Envoy lets through (60 KiB)."""
UNLIMITED_REMAINING: Final = HITS_MAX


class InvalidRequestError(ValueError):
    """An invalid request; the message says which field and what it must be."""


@final
class Descriptor(Value):
    """
    One descriptor of a request.

    `hits` None = those of the request. `override` is a limit that the request brings along, as (requests,
    number of the unit); None = the configured one.
    """

    __slots__ = ("entries", "hits", "override")

    def __init__(self, entries: Entries, hits: int | None = None, override: tuple[int, int] | None = None):
        """See the class."""
        self.entries = entries
        self.hits = hits
        self.override = override


@final
class LimitRequest(Value):
    """A call: `hits` 0 = not said, which means 1."""

    __slots__ = ("descriptors", "domain", "hits")

    def __init__(self, domain: str, descriptors: Sequence[Descriptor], hits: int = 0):
        """See the class."""
        self.domain = domain
        self.descriptors = descriptors
        self.hits = hits


@dataclass(frozen=True, slots=True)
class LimitStyle:
    """
    How calls are counted and answered.

    `all_or_none`: fixed windows do not count the hits of a refused call; token buckets never do.
    `is_shadow`: the overall code is always OK. `headers` are the names for limit, remaining and reset,
    None = no headers.
    """

    all_or_none: bool = False
    is_shadow: bool = False
    headers: tuple[str, str, str] | None = None
    adds_metadata: bool = False


@final
class Status(Value):
    """
    The answer to one descriptor.

    `limit` None = it has none in force: nothing else is said. An unlimited one has no unit.
    """

    __slots__ = ("is_over", "limit", "remaining", "reset_s")

    def __init__(self, limit: Limit | None, is_over: bool = False, remaining: int = 0, reset_s: int = 0):
        """See the class."""
        self.limit = limit
        self.is_over = is_over
        self.remaining = remaining
        self.reset_s = reset_s


@final
class LimitAnswer(Value):
    """The answer to a call: the overall code, a status for each descriptor, headers for the client."""

    __slots__ = ("headers", "is_over", "metadata", "statuses")

    def __init__(
        self,
        is_over: bool,
        statuses: Sequence[Status],
        headers: Sequence[tuple[str, str]] = (),
        metadata: Mapping[str, Any] | None = None,
    ):
        """See the class."""
        self.is_over = is_over
        self.statuses = statuses
        self.headers = headers
        self.metadata = metadata


@final
class Limited:
    """A descriptor with a limit: `index` is its place in the request; `rule` None = it brought the limit."""

    __slots__ = ("index", "limit", "rule", "take")

    def __init__(self, index: int, limit: Limit, rule: Rule | None, take: CounterTake) -> None:
        """See the class."""
        self.index = index
        self.limit = limit
        self.rule = rule
        self.take = take


_UNMATCHED: Final = Status(None)
_UNLIMITED: Final = Status(Limit(None), remaining=UNLIMITED_REMAINING)


class Plan:
    """
    What a request takes; its answer once that was taken. Equal requests may share one.

    `domain` None = no file has the request's domain. `limited` has an entry for each of `takes`.
    """

    __slots__ = ("_rules", "_statuses", "_style", "domain", "limited", "request", "takes")

    def __init__(self, request: LimitRequest, limits: RateLimits, style: LimitStyle) -> None:
        """
        Find the limits of *request*.

        Raises:
            InvalidRequestError: it breaks a bound, lacks a domain or descriptors, or has an unknown unit.
        """
        check(request)
        self.request = request
        self.domain = limits.domains.get(request.domain)
        self._style = style
        self._statuses = [_UNMATCHED] * len(request.descriptors)
        self._rules: list[Rule | None] = [None] * len(request.descriptors)
        self.limited: list[Limited] = []
        if self.domain is not None:
            self._find(self.domain)
        self.takes = [limited.take for limited in self.limited]

    def _find(self, domain: Domain) -> None:
        replaced: set[str] = set()
        for index, descriptor in enumerate(self.request.descriptors):
            if descriptor.override is not None:
                self._override(index, domain, descriptor, descriptor.override)
                continue
            match = domain.match(descriptor.entries)
            if match is None:
                continue
            rule, limit = match.rule, match.rule.limit
            assert limit is not None  # else nothing would have matched
            replaced |= limit.replaces
            self._rules[index] = rule
            if limit.unit is None:
                self._statuses[index] = _UNLIMITED
                continue
            algorithm = limit.algorithm or domain.algorithm
            take = self._take(domain, algorithm, limit, match.counter, self._hits(descriptor), rule)
            self.limited.append(Limited(index, limit, rule, take))
        if replaced:
            for limited in self.limited:
                if limited.rule is not None and limited.limit.name in replaced:
                    self._rules[limited.index] = None
            self.limited = [
                limited
                for limited in self.limited
                if limited.rule is None or limited.limit.name not in replaced
            ]

    def _override(
        self, index: int, domain: Domain, descriptor: Descriptor, override: tuple[int, int]
    ) -> None:
        requests, unit = override
        limit = Limit(Unit(unit), requests)
        counter = counter_of(descriptor.entries)
        if domain.algorithm is Algorithm.TOKEN_BUCKET:
            counter = f"{requests}:{counter}"  # a bucket has one size, so each limit has its own bucket
        take = self._take(domain, domain.algorithm, limit, counter, self._hits(descriptor), None)
        self.limited.append(Limited(index, limit, None, take))

    def _hits(self, descriptor: Descriptor) -> int:
        return (self.request.hits or 1) if descriptor.hits is None else descriptor.hits

    def _take(
        self, domain: Domain, algorithm: Algorithm, limit: Limit, counter: str, hits: int, rule: Rule | None
    ) -> CounterTake:
        assert limit.unit is not None  # unlimited ones take nothing
        is_bucket = algorithm is Algorithm.TOKEN_BUCKET
        kind = "b" if is_bucket else "w"
        if is_bucket and rule is None:
            kind = "o"
        return CounterTake(
            f"{kind}{int(limit.unit)}:{len(domain.name)}:{domain.name}{counter}",
            limit.unit.seconds,
            limit.requests,
            hits,
            is_bucket=is_bucket,
            is_quota=rule is not None and rule.is_quota,
            is_shadow=rule is not None and rule.is_shadow,
            counts_refused=not is_bucket and not self._style.all_or_none,
        )

    def answer(self, taken: CountersTaken | None) -> LimitAnswer:
        """The answer after *taken*; None = `takes` is empty."""
        statuses = self._statuses
        is_over = False
        if self.limited:
            statuses = statuses.copy()
        if taken is not None:
            for limited, counted in zip(self.limited, taken.counted, strict=True):
                statuses[limited.index] = _status(limited, counted, taken.now_us)
            is_over = is_refused(self.takes, taken.counted)
        style = self._style
        headers = self._headers(statuses) if style.headers is not None else ()
        metadata = self._metadata(statuses) if style.adds_metadata else None
        return LimitAnswer(is_over and not style.is_shadow, statuses, headers, metadata)

    def _headers(self, statuses: Sequence[Status]) -> Sequence[tuple[str, str]]:
        """Those of the last enforced limit that is over; else of the one with the least remaining."""
        chosen: Status | None = None
        for limited in self.limited:
            status = statuses[limited.index]
            if status.is_over and not limited.take.is_quota:
                chosen = status
        if chosen is None:
            counted = [statuses[limited.index] for limited in self.limited]
            chosen = min(counted, key=lambda status: status.remaining, default=None)
        if chosen is None or chosen.limit is None or self._style.headers is None:
            return ()
        values = chosen.limit.requests, chosen.remaining, chosen.reset_s
        return [(name, str(value)) for name, value in zip(self._style.headers, values, strict=True)]

    def _metadata(self, statuses: Sequence[Status]) -> Mapping[str, Any]:
        request = self.request
        metadata: dict[str, Any] = {  # Any: JSON
            "domain": request.domain,
            "descriptors": [_described(descriptor) for descriptor in request.descriptors],
        }
        if request.hits:
            metadata["hitsAddend"] = request.hits
        merged: dict[str, Any] = {}  # Any: JSON
        for status, rule in zip(statuses, self._rules, strict=True):
            if rule is not None and not status.is_over:
                merge(merged, rule.metadata)
        if merged:
            metadata["metadata"] = merged
        return metadata


def check(request: LimitRequest) -> None:
    """
    Hold *request* against the bounds.

    Raises:
        InvalidRequestError: it breaks one.
    """
    if not request.domain:
        raise InvalidRequestError("domain: must not be empty")
    count = len(request.descriptors)
    if not 1 <= count <= DESCRIPTORS_MAX:
        raise InvalidRequestError(f"descriptors: must be 1 to {DESCRIPTORS_MAX} of them, not {count}")
    for index, descriptor in enumerate(request.descriptors):
        entries, hits, override = descriptor.entries, descriptor.hits, descriptor.override
        if len(entries) > ENTRIES_MAX:
            raise InvalidRequestError(
                f"descriptors[{index}].entries: must be at most {ENTRIES_MAX}, not {len(entries)}"
            )
        for key, value in entries:
            if len(key) > ENTRY_CHARS_MAX or len(value) > ENTRY_CHARS_MAX:
                raise InvalidRequestError(
                    f"descriptors[{index}].entries: keys and values must have at most {ENTRY_CHARS_MAX}"
                    " characters"
                )
        if hits is not None and hits > HITS_MAX:
            raise InvalidRequestError(f"descriptors[{index}].hits_addend: must be at most {HITS_MAX}")
        if override is not None and override[1] not in _UNITS:
            raise InvalidRequestError(
                f"descriptors[{index}].limit.unit: must be SECOND to YEAR, or WEEK; {override[1]} is none of"
                " them"
            )


_UNITS: Final = frozenset(int(unit) for unit in Unit)


def _status(limited: Limited, counted: Counted, now_us: int) -> Status:
    take = limited.take
    return Status(
        limited.limit,
        counted.is_over and not take.is_shadow,
        remaining_of(take, counted),
        reset_s_of(take, counted, now_us),
    )


def _described(descriptor: Descriptor) -> dict[str, Any]:
    described: dict[str, Any] = {}  # Any: JSON
    described["entries"] = [f"{key}={value}" for key, value in descriptor.entries]
    if descriptor.override is not None:
        requests, unit = descriptor.override
        described["limit"] = f"requests_per_unit:{requests} unit:{Unit(unit).name}"
    if descriptor.hits is not None:
        described["hitsAddend"] = descriptor.hits
    return described


def merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    """
    Add *source* to *target*: mappings are merged, of anything else the first one stays.

    >>> merged = {"a": 1, "b": {"c": 1}}
    >>> merge(merged, {"a": 2, "b": {"d": 2}})
    >>> merged
    {'a': 1, 'b': {'c': 1, 'd': 2}}
    """
    for key, value in source.items():
        if isinstance(value, Mapping):
            inner = target.setdefault(key, {})
            if isinstance(inner, dict):
                merge(inner, value)
        else:
            target.setdefault(key, value)

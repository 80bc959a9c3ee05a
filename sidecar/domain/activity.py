"""
What stands out in the requests of one integration: plain rules over the counts of its decision log.

Each rule compares the window with the time before it, and answers with findings. A finding holds its figures,
so that a reader can repeat the comparison. A rule that has too little history says so instead.
docs/administer/activity.md explains each rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple, TypeAlias

from sidecar.domain.effective import is_live
from sidecar.domain.integrations import Integration
from sidecar.domain.working_hours import HOUR_US, WorkingHours, format_working_hours

DAY_US = 24 * HOUR_US
WEEK_US = 7 * DAY_US
BASELINE_WEEKS = 4
"""The window is compared with the same hours of this many weeks before."""
BASELINE_WEEKS_MIN = 3
"""With fewer weeks in the log, nothing is compared."""
HISTORY_DAYS = 90
"""Networks, scopes and API keys are looked up this many days back from the start of the window."""
ADDRESS_DAYS = 30
"""Single addresses are looked up this many days back, in the rows of the log."""
NEW_DAYS_MIN = 7
"""With fewer days before the window, every network and every address would be new."""
OTHER = "other"
"""The key that counts requests whose own key a rollup does not keep, see `stores.decisions.rollup`."""

SCALE = 1.4826
"""Times the median absolute deviation = the standard deviation, for values of a normal distribution."""
DEVIATIONS_MAX = 5
SHARE_MAX = 0.5
REQUESTS_MIN = 20
"""Requests by which a volume must differ at least: few requests always vary much."""

REFUSED_MIN = 10
REFUSED_SHARE_MIN = 0.01
REFUSED_GROWTH = 2
LISTED_MAX = 20
"""Members of a list in the figures of a finding."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Figures: TypeAlias = dict[str, Any]


class Rule(StrEnum):
    """The rules; findings and their documentation name them so."""

    VOLUME = "volume"
    PEAK_HOURS = "peak_hours"
    OUTSIDE_WORKING_HOURS = "outside_working_hours"
    NEW_NETWORKS = "new_networks"
    NEW_ADDRESSES = "new_addresses"
    SCOPE_NOT_GRANTED = "scope_not_granted"
    REFUSALS = "refusals"
    WOULD_DENY = "would_deny"
    INVALID_KEYS = "invalid_keys"
    ROTATION = "rotation"
    UNUSED_SCOPE = "unused_scope"


class Finding(NamedTuple):
    """Something that stands out: a sentence, the figures behind it, and what to do next."""

    rule: Rule
    message: str
    figures: Figures
    next_step: str


class Unchecked(NamedTuple):
    """A rule that could not be applied, or only in part, and why."""

    rule: Rule
    message: str


class KeyCount(NamedTuple):
    """
    Requests with one key and one reason, see `stores.decisions.rollup` for kinds and keys.

    `requests` are those in the window, `baseline` those in the `BASELINE_WEEKS` before. The times are of the
    first and the last request in the window and the `HISTORY_DAYS` before, in µs since the epoch.
    """

    kind: str
    key: str
    reason: str
    requests: int
    baseline: int
    first_seen_us: int
    last_seen_us: int


class Total(NamedTuple):
    """Requests with one key and any reason; see `KeyCount`."""

    key: str
    requests: int
    refused: int
    first_seen_us: int
    last_seen_us: int


class NewAddresses(NamedTuple):
    """
    The addresses that the rows before the window do not have: their number, and the busiest of them.

    `since_us` is from when on there are rows. `problem` says why they are not known.
    """

    since_us: int
    number: int = 0
    busiest: tuple[Total, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Activity:
    """
    The counts of one integration's requests.

    Args:
        from_us: the start of the window, a full hour, in µs since the epoch.
        to_us: the end of the window.
        begins_us: when the log began, or the integration was created or first called if that is later.
        hours: requests by the start of their hour, in the window and the `BASELINE_WEEKS` before.
        counts: all kinds and keys.
        invalid_keys: requests that were refused with key_flood in the window, by network; of unknown callers.
        is_complete: False = counts of the networks with the fewest requests are left out.
        new_addresses: None = not looked up.
    """

    from_us: int
    to_us: int
    begins_us: int
    hours: Mapping[int, int]
    counts: Sequence[KeyCount]
    invalid_keys: Mapping[str, int]
    is_complete: bool = True
    new_addresses: NewAddresses | None = None

    @property
    def weeks(self) -> int:
        """How many of the weeks before the window are in the log completely."""
        return min(BASELINE_WEEKS, max(0, self.from_us - self.begins_us) // WEEK_US)

    @property
    def requests(self) -> int:
        """The requests of the window."""
        return sum(count.requests for count in self.of("reason"))

    def of(self, kind: str) -> Iterator[KeyCount]:
        """Yield the counts of *kind*."""
        return (count for count in self.counts if count.kind == kind)

    def requests_between(self, from_us: int, to_us: int) -> int:
        """Return the requests of the hours that begin from *from_us* on and before *to_us*."""
        return sum(count for hour_us, count in self.hours.items() if from_us <= hour_us < to_us)

    def baseline_hours(self) -> dict[int, int]:
        """Return the requests by hour in the complete weeks before the window."""
        start_us = self.from_us - self.weeks * WEEK_US
        return {hour_us: count for hour_us, count in self.hours.items() if start_us <= hour_us < self.from_us}


class Usual(NamedTuple):
    """The range in which a volume is usual, from the volumes of the weeks before."""

    weeks: list[int]
    median: float
    deviation: float
    low: float
    high: float


def usual(weeks: Sequence[int]) -> Usual:
    """
    Return the range around the median of *weeks*, at least one volume.

    Its half width is the largest of `DEVIATIONS_MAX` x `SCALE` x the median absolute deviation, `SHARE_MAX` x
    the median, and `REQUESTS_MIN`.

    >>> usual([1000, 1100, 900, 1000])
    Usual(weeks=[1000, 1100, 900, 1000], median=1000.0, deviation=50.0, low=500.0, high=1500.0)
    """
    middle = float(median(weeks))
    deviation = float(median(abs(week - middle) for week in weeks))
    width = max(DEVIATIONS_MAX * SCALE * deviation, SHARE_MAX * middle, REQUESTS_MIN)
    return Usual(list(weeks), middle, deviation, max(0.0, middle - width), middle + width)


def usual_volume(activity: Activity, from_us: int, to_us: int) -> Usual:
    """Return the usual volume from *from_us* to *to_us*, by the same hours of the weeks before."""
    return usual(
        [
            activity.requests_between(from_us - week * WEEK_US, to_us - week * WEEK_US)
            for week in range(1, activity.weeks + 1)
        ]
    )


def find(
    activity: Activity, record: Integration, working_hours: WorkingHours | None
) -> tuple[list[Finding], list[Unchecked]]:
    """
    Apply every rule; return the findings, and the rules that could not be applied.

    Args:
        activity: the counts.
        record: the integration.
        working_hours: written or learned; None = there is too little history to learn them.
    """
    findings: list[Finding] = []
    unchecked: list[Unchecked] = []
    for rule in _RULES:
        for result in rule(activity, record, working_hours):
            if isinstance(result, Finding):
                findings.append(result)
            else:
                unchecked.append(result)
    return findings, unchecked


Results: TypeAlias = Iterator[Finding | Unchecked]


def _volume(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    """The volume of the window's full hours, and each of these hours alone."""
    end_us = activity.to_us - activity.to_us % HOUR_US
    if end_us <= activity.from_us:
        yield Unchecked(Rule.VOLUME, "the window has no full hour; ask for a longer window")
        return
    if activity.weeks < BASELINE_WEEKS_MIN:
        yield Unchecked(Rule.VOLUME, f"the rule needs {BASELINE_WEEKS_MIN} weeks; {_history(activity)}")
        return
    requests = activity.requests_between(activity.from_us, end_us)
    range_ = usual_volume(activity, activity.from_us, end_us)
    if not range_.low <= requests <= range_.high:
        yield Finding(
            Rule.VOLUME,
            f"{requests:,} requests from {_at(activity.from_us)} to {_at(end_us)}; in the same hours of the"
            f" last {activity.weeks} weeks the median is {range_.median:,.0f}",
            {"requests": requests, **_usual_figures(range_)},
            _volume_step(record, is_high=requests > range_.high),
        )
    yield from _peak_hours(activity, record, end_us)


def _peak_hours(activity: Activity, record: Integration, end_us: int) -> Results:
    peaks = []
    for hour_us in range(activity.from_us, end_us, HOUR_US):
        requests = activity.hours.get(hour_us, 0)
        range_ = usual_volume(activity, hour_us, hour_us + HOUR_US)
        if requests > range_.high:
            peaks.append({"hour_us": hour_us, "requests": requests, **_usual_figures(range_)})
    if peaks:
        peaks.sort(key=lambda peak: -int(peak["requests"]))
        top = peaks[0]
        yield Finding(
            Rule.PEAK_HOURS,
            f"{_counted(len(peaks), 'hour has', 'hours have')} more requests than usual; the hour from"
            f" {_at(top['hour_us'])} has {top['requests']:,}, and the median of this hour of the week is"
            f" {top['median']:,.0f}",
            {"hours": peaks[:LISTED_MAX], "count": len(peaks)},
            f"look at the requests: sidecar logs --integration {record.id} {_span(top['hour_us'])}",
        )


def _outside(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    """Requests outside the working hours."""
    rule = Rule.OUTSIDE_WORKING_HOURS
    if working_hours is None:
        reason = (
            _history(activity)
            if activity.weeks < BASELINE_WEEKS_MIN
            else "there were no requests in the weeks before the window"
        )
        yield Unchecked(rule, f"the working hours are not known: {reason}; set them with --hours and --days")
        return
    outside = [
        {"hour_us": hour_us, "requests": requests}
        for hour_us, requests in sorted(activity.hours.items())
        if hour_us >= activity.from_us
        and not working_hours.includes(hour_us)
        and requests > working_hours.requests_max
    ]
    if outside:
        requests = sum(hour["requests"] for hour in outside)
        source = "as learned from the weeks before" if working_hours.is_learned else "as set"
        yield Finding(
            rule,
            f"{_counted(requests, 'request', 'requests')} outside the working hours, first in the hour from"
            f" {_at(outside[0]['hour_us'])}",
            {
                "requests": requests,
                "hours": outside[:LISTED_MAX],
                "working_hours": format_working_hours(working_hours.hours),
                "source": source,
                "requests_max": round(working_hours.requests_max, 1),
            },
            "ask the contact of the integration; look at the requests: sidecar logs --integration"
            f" {record.id} {_span(outside[0]['hour_us'])}",
        )


def _new_networks(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    """Networks that were not seen before the window."""
    rule = Rule.NEW_NETWORKS
    if activity.from_us - activity.begins_us < NEW_DAYS_MIN * DAY_US:
        yield Unchecked(rule, f"the rule needs {NEW_DAYS_MIN} days; {_history(activity)}")
        return
    networks = totals(activity.of("address"))
    new = [total for total in networks if total.first_seen_us >= activity.from_us and total.key != OTHER]
    if new:
        since_us = max(activity.begins_us, activity.from_us - HISTORY_DAYS * DAY_US)
        yield Finding(
            rule,
            f"{_counted(len(new), 'network', 'networks')} not seen before in the log since {_at(since_us)},"
            f" the busiest {new[0].key} with {_counted(new[0].requests, 'request', 'requests')},"
            f" {new[0].refused:,} refused",
            {
                "count": len(new),
                "networks": [total._asdict() for total in new[:LISTED_MAX]],
                "log_since_us": since_us,
            },
            f"look at their requests: sidecar logs --integration {record.id} --address {new[0].key}; ask the"
            " contact; if a network is not theirs, rotate the API keys; to admit known networks only: sidecar"
            f" allowlist add {record.id} CIDR",
        )
    rest = sum(total.requests for total in networks if total.key == OTHER)
    if rest or not activity.is_complete:
        yield Unchecked(rule, "the log has more networks than it keeps apart; ask for a shorter window")


def _new_addresses(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    """Addresses that were not seen before the window, also in known networks."""
    new = activity.new_addresses
    if new is None:
        return
    rule = Rule.NEW_ADDRESSES
    if new.problem:
        yield Unchecked(rule, new.problem)
    elif activity.from_us - max(new.since_us, activity.begins_us) < NEW_DAYS_MIN * DAY_US:
        since = _at(max(new.since_us, activity.begins_us))
        yield Unchecked(rule, f"the rule needs rows of {NEW_DAYS_MIN} days; they begin at {since}")
    elif new.number:
        first = new.busiest[0]
        yield Finding(
            rule,
            f"{_counted(new.number, 'address', 'addresses')} not seen in the rows since {_at(new.since_us)},"
            f" the busiest {first.key} with {_counted(first.requests, 'request', 'requests')},"
            f" {first.refused:,} refused",
            {
                "count": new.number,
                "addresses": [total._asdict() for total in new.busiest],
                "rows_since_us": new.since_us,
            },
            f"look at their requests: sidecar logs --integration {record.id} --address {first.key}",
        )


def _scopes_not_granted(
    activity: Activity, record: Integration, working_hours: WorkingHours | None
) -> Results:
    granted = set(map(str, record.scopes))
    for count in activity.of("scope"):
        if count.reason == "scope_missing" and count.requests and count.key not in granted:
            yield Finding(
                Rule.SCOPE_NOT_GRANTED,
                f"{_counted(count.requests, 'request', 'requests')} asked for {count.key}, which is not"
                f" granted; last at {_at(count.last_seen_us)}",
                {"scope": count.key, "requests": count.requests, "last_seen_us": count.last_seen_us},
                "ask the contact why; if the integration needs it: sidecar scopes add"
                f" {record.id} {count.key}",
            )


def _refusals(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    """Reasons whose share of the requests has grown."""
    reasons = list(activity.of("reason"))
    requests, before = activity.requests, sum(count.baseline for count in reasons)
    for count in sorted(reasons, key=lambda count: -count.requests):
        if count.reason == "ok" or count.requests < REFUSED_MIN:
            continue
        share = count.requests / requests
        share_before = count.baseline / before if before else 0.0
        if share > max(REFUSED_SHARE_MIN, REFUSED_GROWTH * share_before):
            yield Finding(
                Rule.REFUSALS,
                f"{count.requests:,} requests ({share:.1%}) were refused with {count.reason}; the"
                f" {BASELINE_WEEKS} weeks before "
                + (f"had {share_before:.1%}" if before else "have no requests to compare with"),
                {
                    "reason": count.reason,
                    "requests": count.requests,
                    "share": round(share, 4),
                    "baseline_requests": count.baseline,
                    "baseline_share": round(share_before, 4),
                },
                _NEXT_STEPS.get(count.reason, _SEE_REFUSALS).format(id=record.id, reason=count.reason),
            )


def _would_deny(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    for total in totals(activity.of("would_deny")):
        yield Finding(
            Rule.WOULD_DENY,
            f"{_counted(total.requests, 'request', 'requests')} passed only because shadow mode does not"
            f" enforce {total.key}",
            {"reason": total.key, "requests": total.requests, "last_seen_us": total.last_seen_us},
            "correct the rule, or inform the contact before it is enforced",
        )


def _invalid_keys(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    """Networks of the integration from which a flood of invalid keys came."""
    for total in totals(activity.of("address")):
        refused = activity.invalid_keys.get(total.key, 0)
        if refused and total.key != OTHER:
            yield Finding(
                Rule.INVALID_KEYS,
                f"{total.key} called with valid keys; refused with key_flood because of invalid keys from"
                f" there: {_counted(refused, 'request', 'requests')}",
                {"network": total.key, "requests": total.requests, "refused_with_key_flood": refused},
                "look for a program with an old key there; if the network is not theirs, rotate the API keys",
            )


def _rotations(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    """Rotations whose old API key is still used, or needed no longer."""
    used = {total.key: total for total in totals(activity.of("credential"), with_unused=True)}
    for old in record.credentials:
        old_use, new_use = used.get(old.id), used.get(old.replaced_by)
        if not old.replaced_by or not is_live(record, old, activity.to_us):
            continue
        figures = {
            "credential": old.id,
            "replaced_by": old.replaced_by,
            "requests": old_use.requests if old_use else 0,
            "replacement_requests": new_use.requests if new_use else 0,
            "last_seen_us": old_use.last_seen_us if old_use else None,
            "expires_at_us": old.expires_at_us,
        }
        if old_use and old_use.requests:
            end = f" and expires at {_at(old.expires_at_us)}" if old.expires_at_us else ""
            yield Finding(
                Rule.ROTATION,
                f"{old.id} is replaced by {old.replaced_by}{end}, and was still used for"
                f" {_counted(old_use.requests, 'request', 'requests')}, last at {_at(old_use.last_seen_us)}",
                figures,
                f"ask the developer to use {old.replaced_by}; to give more time: sidecar credentials expire"
                f" {record.id} {old.id} WHEN",
            )
        elif new_use and new_use.requests:
            yield Finding(
                Rule.ROTATION,
                f"{old.id} is replaced by {old.replaced_by}, and was not used in the window",
                figures,
                f"sidecar credentials revoke {record.id} {old.id}",
            )


def _unused_scopes(activity: Activity, record: Integration, working_hours: WorkingHours | None) -> Results:
    uses = scope_uses(activity)
    unused = [str(scope) for scope in sorted(record.scopes) if not _is_used(uses, str(scope), activity)]
    if unused and activity.to_us - activity.begins_us < HISTORY_DAYS * DAY_US:
        yield Unchecked(Rule.UNUSED_SCOPE, f"the rule needs {HISTORY_DAYS} days; {_history(activity)}")
        return
    for scope in unused:
        yield Finding(
            Rule.UNUSED_SCOPE,
            f"{scope} is granted, and no request needed it for {HISTORY_DAYS} days",
            {"scope": scope, "days": HISTORY_DAYS, "last_seen_us": uses.get(scope)},
            remove_scope(record.id, scope),
        )


def scope_uses(activity: Activity) -> dict[str, int]:
    """Return when each scope was last used, in µs since the epoch; a refusal with scope_missing is no use."""
    uses: dict[str, int] = {}
    for count in activity.of("scope"):
        if count.reason != "scope_missing":
            uses[count.key] = max(count.last_seen_us, uses.get(count.key, 0))
    return uses


def remove_scope(integration_id: str, scope: str) -> str:
    """Return the command that removes a scope."""
    return f"sidecar scopes remove {integration_id} {scope}"


def _is_used(uses: Mapping[str, int], scope: str, activity: Activity) -> bool:
    return uses.get(scope, 0) >= activity.to_us - HISTORY_DAYS * DAY_US


def totals(counts: Iterator[KeyCount], with_unused: bool = False) -> list[Total]:
    """Add up *counts* of one kind by key, the busiest first; without keys that the window does not have."""
    groups: dict[str, list[KeyCount]] = defaultdict(list)
    for count in counts:
        groups[count.key].append(count)
    found = [
        Total(
            key,
            sum(count.requests for count in group),
            sum(count.requests for count in group if count.reason != "ok"),
            min(count.first_seen_us for count in group),
            max(count.last_seen_us for count in group),
        )
        for key, group in groups.items()
    ]
    kept = (total for total in found if total.requests or with_unused)
    return sorted(kept, key=lambda total: (-total.requests, total.key))


_RULES: tuple[Callable[[Activity, Integration, WorkingHours | None], Results], ...] = (
    _volume,
    _outside,
    _new_networks,
    _new_addresses,
    _scopes_not_granted,
    _refusals,
    _would_deny,
    _invalid_keys,
    _rotations,
    _unused_scopes,
)

_SEE_REFUSALS = "list them with 'sidecar logs --integration {id} --reason {reason}'"
_NEXT_STEPS: Mapping[str, str] = {
    "rate_limited": "if the volume is wanted: sidecar limit set {id} RPM; otherwise ask the developer to wait"
    " for Retry-After",
    "ip_not_allowed": "if an address is theirs: sidecar allowlist add {id} CIDR;"
    " 'sidecar allowlist show {id}' lists the refused addresses",
    "scope_missing": "see the scopes that are not granted",
    "integration_suspended": "inform the contact that the integration is suspended, and by whom",
    "store_unavailable": "see 'The shared store' in docs/operate/runbook.md",
    "overloaded": "see 'Overloaded' in docs/operate/runbook.md",
}


def _usual_figures(range_: Usual) -> Figures:
    return {
        "weeks": range_.weeks,
        "median": range_.median,
        "median_absolute_deviation": range_.deviation,
        "usual_from": round(range_.low, 1),
        "usual_to": round(range_.high, 1),
    }


def _volume_step(record: Integration, *, is_high: bool) -> str:
    if is_high:
        return (
            "compare routes and networks with what you know of the integration; to slow it down:"
            f" sidecar limit set {record.id} RPM; if it is misuse: sidecar suspend {record.id} --reason TEXT"
        )
    return "ask the contact whether the integration is stopped; see the refusals by reason"


def _history(activity: Activity) -> str:
    return f"the log of this integration begins at {_at(activity.begins_us)}"


def _span(hour_us: int) -> str:
    """The options of a command that ask for one hour."""
    since, until = (_EPOCH + timedelta(microseconds=at_us) for at_us in (hour_us, hour_us + HOUR_US))
    return f"--since {since:%Y-%m-%dT%H:%MZ} --until {until:%Y-%m-%dT%H:%MZ}"


def _counted(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def _at(at_us: int) -> str:
    """The time in UTC, to the minute."""
    return (_EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%d %H:%MZ")

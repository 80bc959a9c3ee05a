"""The endpoint that answers what stands out in an integration's requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from itertools import groupby
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.activity import (
    BASELINE_WEEKS,
    BASELINE_WEEKS_MIN,
    WEEK_US,
    Activity,
    Total,
    find,
    scope_uses,
    totals,
)
from sidecar.domain.integrations import Integration
from sidecar.domain.refusals import Code, refusal
from sidecar.domain.roles import Action
from sidecar.domain.working_hours import (
    HOUR_US,
    WorkingHours,
    WorkingHoursError,
    format_working_hours,
    learn_working_hours,
    parse_working_hours,
)
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.decision_log import QUERY_TIMEOUT_S
from sidecar.services.admin.decision_views import MissingView, missing_view
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.reading import INTEGRATION, known_integration
from sidecar.services.admin.times import format_optional_time, format_time
from sidecar.stores.decisions.activity import read_activity
from sidecar.stores.decisions.missing import MissingSpan, merged
from sidecar.stores.decisions.reader import DecisionReader

SECOND_US = 1_000_000
KEYS_MAX = 20
"""Networks and routes in one answer, the busiest."""

RuleWord = Literal[
    "volume",
    "peak_hours",
    "outside_working_hours",
    "new_networks",
    "new_addresses",
    "scope_not_granted",
    "refusals",
    "would_deny",
    "invalid_keys",
    "rotation",
    "unused_scope",
]


class FindingView(TypedDict):
    """Something that stands out; docs/administer/activity.md explains the rules and their figures."""

    rule: RuleWord
    message: str
    figures: dict[str, Any]
    next_step: str


class UncheckedView(TypedDict):
    """A rule that could not be applied, or only in part, and why."""

    rule: RuleWord
    message: str


class WorkingHoursView(TypedDict):
    """The working hours that the requests were compared with."""

    hours: str
    time_zone: str
    source: Literal["set", "learned"]


class ReasonCountView(TypedDict):
    """Requests of the window with one reason, and those of the weeks before."""

    reason: str
    requests: int
    baseline_requests: int


class KeyCountView(TypedDict):
    """Requests of the window with one network, API key or route; the times are of the last 90 days."""

    key: str
    requests: int
    refused: int
    first_seen: str
    last_seen: str


class ScopeCountView(TypedDict):
    """A scope that is granted or that requests needed; `last_used_at` null = not used in 90 days."""

    scope: str
    is_granted: bool
    requests: int
    refused: int
    last_used_at: str | None


class ActivityView(TypedDict):
    """
    What stands out from `since` to `until`, and the counts behind it.

    `log_begins_at` is when the log of this integration begins. `missing` are the rows that the window lacks,
    `missing_before` those that the weeks before it lack, added up by sidecar and cause.
    """

    integration_id: str
    since: str
    until: str
    log_begins_at: str
    requests: int
    refused: int
    findings: list[FindingView]
    not_checked: list[UncheckedView]
    working_hours: WorkingHoursView | None
    reasons: list[ReasonCountView]
    networks: list[KeyCountView]
    scopes: list[ScopeCountView]
    credentials: list[KeyCountView]
    routes: list[KeyCountView]
    missing: list[MissingView]
    missing_before: list[MissingView]


class _Read(NamedTuple):
    activity: Activity
    missing: list[MissingSpan]
    missing_before: list[MissingSpan]


async def show_activity(context: AdminContext, call: Call, query: b.ActivityQuery, body: Any) -> Response:
    """Answer with the activity of one integration."""
    log, zone = context.require_decision_log(), _zone(query.time_zone)
    given_hours = _working_hours(query, zone)
    record = await known_integration(context, call.path("integration_id"))
    to_us = query.until if query.until is not None else context.clock_us()
    start_us = max(0, to_us - query.since * SECOND_US)
    from_us = start_us - start_us % HOUR_US

    def read(reader: DecisionReader) -> _Read:
        baseline_us = max(0, from_us - BASELINE_WEEKS * WEEK_US)
        return _Read(
            read_activity(reader, record.id, from_us, to_us, record.created_at_us, QUERY_TIMEOUT_S),
            reader.missing(from_us, to_us),
            reader.missing(baseline_us, from_us - 1),
        )

    found = await log.run(read)
    hours = given_hours or _learned(found.activity, zone)
    return answer(activity_view(record, found, hours, query.time_zone))


def activity_view(
    record: Integration, found: _Read, hours: WorkingHours | None, time_zone: str
) -> ActivityView:
    """Return the counts of *record* with what stands out in them."""
    activity = found.activity
    findings, unchecked = find(activity, record, hours)
    return {
        "integration_id": record.id,
        "since": format_time(activity.from_us),
        "until": format_time(activity.to_us),
        "log_begins_at": format_time(activity.begins_us),
        "requests": activity.requests,
        "refused": sum(count.requests for count in activity.of("reason") if count.reason != "ok"),
        "findings": [
            {
                "rule": finding.rule.value,
                "message": finding.message,
                "figures": _figures(finding.figures),
                "next_step": finding.next_step,
            }
            for finding in findings
        ],
        "not_checked": [{"rule": rule.value, "message": message} for rule, message in unchecked],
        "working_hours": _hours_view(hours, time_zone),
        "reasons": [
            {"reason": count.reason, "requests": count.requests, "baseline_requests": count.baseline}
            for count in sorted(activity.of("reason"), key=lambda count: -count.requests)
        ],
        "networks": _views(totals(activity.of("address"))[:KEYS_MAX]),
        "scopes": list(_scope_views(activity, record)),
        "credentials": _views(totals(activity.of("credential"))),
        "routes": _views(totals(activity.of("route"))[:KEYS_MAX]),
        "missing": _missing(found.missing),
        "missing_before": _missing(found.missing_before),
    }


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # the error for an unknown name depends on the name
        raise refusal(
            Code.INVALID_VALUE,
            "time_zone",
            f"no time zone {name[:80]!a} on this machine",
            "send a name such as Europe/Berlin or UTC; the package tzdata has all names",
        ) from None


def _working_hours(query: b.ActivityQuery, zone: tzinfo) -> WorkingHours | None:
    """The working hours that *query* sets; None = to be learned."""
    if not query.hours and not query.days:
        return None
    try:
        return parse_working_hours(query.hours, query.days, zone)
    except WorkingHoursError as error:
        raise refusal(
            Code.INVALID_VALUE, "hours", str(error), "correct 'hours' or 'days', or leave both out"
        ) from None


def _learned(activity: Activity, zone: tzinfo) -> WorkingHours | None:
    if activity.weeks < BASELINE_WEEKS_MIN:
        return None
    return learn_working_hours(activity.baseline_hours(), activity.weeks, zone)


def _hours_view(hours: WorkingHours | None, time_zone: str) -> WorkingHoursView | None:
    if hours is None:
        return None
    return {
        "hours": format_working_hours(hours.hours),
        "time_zone": time_zone,
        "source": "learned" if hours.is_learned else "set",
    }


def _scope_views(activity: Activity, record: Integration) -> Iterator[ScopeCountView]:
    uses = scope_uses(activity)
    granted = set(map(str, record.scopes))
    counts = {total.key: total for total in totals(activity.of("scope"))}
    for scope in sorted(granted | counts.keys()):
        total = counts.get(scope)
        yield {
            "scope": scope,
            "is_granted": scope in granted,
            "requests": total.requests if total else 0,
            "refused": total.refused if total else 0,
            "last_used_at": format_optional_time(uses.get(scope)),
        }


def _views(found: Sequence[Total]) -> list[KeyCountView]:
    return [
        {
            "key": total.key,
            "requests": total.requests,
            "refused": total.refused,
            "first_seen": format_time(total.first_seen_us),
            "last_seen": format_time(total.last_seen_us),
        }
        for total in found
    ]


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return *figures* with times instead of µs since the epoch.

    >>> _figures({"requests": 3, "hours": [{"hour_us": 0}]})
    {'requests': 3, 'hours': [{'hour': '1970-01-01T00:00:00.000000Z'}]}
    """
    return {
        name.removesuffix("_us"): _times(value) if name.endswith("_us") else _nested(value)
        for name, value in figures.items()
    }


def _times(at_us: int | None) -> str | None:
    return None if at_us is None else format_time(at_us)


def _nested(value: Any) -> Any:
    if isinstance(value, list):
        return [_figures(member) if isinstance(member, dict) else member for member in value]
    return value


def _missing(spans: Sequence[MissingSpan]) -> list[MissingView]:
    """One span for each sidecar and cause."""
    grouped = groupby(sorted(spans, key=_cause), key=_cause)
    return [missing_view(merged(list(group))) for _, group in grouped]


def _cause(span: MissingSpan) -> tuple[str, str]:
    return span.sidecar, span.cause


ENDPOINTS = (
    Endpoint(
        "show_activity", "GET", INTEGRATION + "/activity", "decisions",
        "Show what stands out in an integration's requests",
        "Compares a window with the weeks before it, by the rules of docs/administer/activity.md. Needs the"
        " setting `decision_log`. The window begins at a full hour.",
        show_activity, frozenset({Action.READ_DECISIONS}), b.ActivityQuery, answer=ActivityView,
    ),
)  # fmt: skip

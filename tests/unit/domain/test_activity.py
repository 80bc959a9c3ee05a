"""What stands out: each rule finds what it states, and nothing in usual requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.activity import (
    BASELINE_WEEKS_MIN,
    DAY_US,
    HISTORY_DAYS,
    OTHER,
    WEEK_US,
    Activity,
    Finding,
    KeyCount,
    NewAddresses,
    Rule,
    Total,
    find,
    usual,
)
from sidecar.domain.integrations import Credential, Integration
from sidecar.domain.scopes import Scope
from sidecar.domain.working_hours import HOUR_US, WorkingHours, parse_working_hours

FROM_US = 1_764_547_200_000_000
"""Monday, 2025-12-01 00:00 UTC."""
TO_US = FROM_US + DAY_US
LONG_AGO_US = FROM_US - 200 * DAY_US
DIGEST = "sha256:" + "0" * 64
RECORD = Integration("acme-erp", "Acme", scopes=frozenset({Scope("orders", "read")}))
STEADY = {FROM_US + hour * HOUR_US: 10 for hour in range(-28 * 24, 24)}
"""10 requests in each hour of the window and of the 4 weeks before."""


def activity(
    hours: Mapping[int, int] = STEADY,
    counts: Sequence[KeyCount] = (),
    begins_us: int = LONG_AGO_US,
    invalid_keys: Mapping[str, int] | None = None,
) -> Activity:
    """The counts of a day; orders:read was used, so that no rule has anything to say about it."""
    used = KeyCount("scope", "orders:read", "ok", 1, 1, LONG_AGO_US, TO_US)
    return Activity(FROM_US, TO_US, begins_us, hours, [used, *counts], invalid_keys or {})


def count(kind: str, key: str, requests: int, reason: str = "ok", **values: int) -> KeyCount:
    """Requests with a key, seen since long ago unless *values* say otherwise."""
    return KeyCount(
        kind,
        key,
        reason,
        requests,
        **{"baseline": 0, "first_seen_us": LONG_AGO_US, "last_seen_us": TO_US - 1} | values,
    )


def findings(
    found: Activity, record: Integration = RECORD, working_hours: WorkingHours | None = None
) -> dict[Rule, Finding]:
    """The findings by rule."""
    return {finding.rule: finding for finding in find(found, record, working_hours)[0]}


def unchecked(found: Activity, working_hours: WorkingHours | None = None) -> set[Rule]:
    """The rules that could not be applied."""
    return {rule for rule, _ in find(found, RECORD, working_hours)[1]}


ALL_HOURS = parse_working_hours("", "", UTC)


def test_find__nothing_in_usual_requests() -> None:
    """A steady integration has no finding, and every rule was applied."""
    known = [count("address", "192.0.2.0/24", 240), count("reason", "ok", 240, baseline=6720)]
    assert find(activity(counts=known), RECORD, ALL_HOURS) == ([], [])


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=4), st.integers(-(10**6), 10**6))
def test_usual__the_range_follows_the_stated_rule(weeks: list[int], shift: int) -> None:
    """The median is usual; the range is symmetric up to zero, at least 20 and half the median wide."""
    found = usual(weeks)
    assert found.low <= found.median <= found.high
    assert found.high - found.median >= max(20, found.median / 2)
    assert found.low == pytest.approx(max(0.0, 2 * found.median - found.high))
    assert usual(sorted(weeks)).high == found.high
    assert usual([week + abs(shift) for week in weeks]).median == found.median + abs(shift)


@pytest.mark.parametrize(
    ("factor", "is_found"), [(1, False), (1.4, False), (0.6, False), (1.6, True), (0.4, True)]
)
def test_volume__against_the_same_hours_of_the_weeks_before(factor: float, is_found: bool) -> None:
    """240 requests in each week before: 120 to 360 are usual."""
    hours = {hour_us: int(n * factor) if hour_us >= FROM_US else n for hour_us, n in STEADY.items()}
    found = findings(activity({hour_us: n * 10 for hour_us, n in hours.items()}))
    assert (Rule.VOLUME in found) is is_found
    if is_found:
        figures = found[Rule.VOLUME].figures
        assert figures["weeks"] == [2400] * 4
        assert (figures["median"], figures["median_absolute_deviation"]) == (2400, 0)
        assert (figures["usual_from"], figures["usual_to"]) == (1200, 3600)
        assert ("sidecar suspend acme-erp" in found[Rule.VOLUME].next_step) is (factor > 1)


def test_volume__counts_full_hours_only() -> None:
    """The hour that has just begun is not compared with whole hours."""
    hours = {hour_us: n for hour_us, n in STEADY.items() if hour_us < FROM_US + 2 * HOUR_US}
    found = Activity(FROM_US, FROM_US + 2 * HOUR_US + 60_000_000, LONG_AGO_US, hours, [], {})
    assert Rule.VOLUME not in findings(found)
    assert Rule.VOLUME in {
        rule for rule, _ in find(Activity(FROM_US, FROM_US + 1, LONG_AGO_US, hours, [], {}), RECORD, None)[1]
    }


def test_peak_hours__name_the_hour() -> None:
    """A single busy hour stands out although the day's volume is usual."""
    peak_us = FROM_US + 3 * HOUR_US
    found = findings(activity({**STEADY, peak_us: 31}))
    assert Rule.VOLUME not in found
    figures = found[Rule.PEAK_HOURS].figures
    assert figures["count"] == 1
    assert (figures["hours"][0]["hour_us"], figures["hours"][0]["requests"]) == (peak_us, 31)
    assert figures["hours"][0]["median"] == 10
    span = "--since 2025-12-01T03:00Z --until 2025-12-01T04:00Z"
    assert f"sidecar logs --integration acme-erp {span}" in found[Rule.PEAK_HOURS].next_step


@pytest.mark.parametrize("weeks", range(5))
def test_weeks__little_history_is_said(weeks: int) -> None:
    """With fewer than 3 complete weeks nothing is compared."""
    begins_us = FROM_US - weeks * WEEK_US - DAY_US
    found = activity({}, begins_us=begins_us)
    assert found.weeks == weeks
    assert (Rule.VOLUME in unchecked(found)) is (weeks < BASELINE_WEEKS_MIN)
    assert (Rule.OUTSIDE_WORKING_HOURS in unchecked(found)) is True
    assert (Rule.NEW_NETWORKS in unchecked(found)) is (weeks < 1)


def test_outside__set_hours_count_every_request_and_learned_hours_more_than_a_few() -> None:
    """Set hours are exact; learned ones have a level, because quiet hours have some requests, too."""
    at_four_us, at_nine_us = FROM_US + 4 * HOUR_US, FROM_US + 9 * HOUR_US
    found = activity({at_four_us: 2, at_nine_us: 100})
    office = parse_working_hours("08-18", "mon-fri", UTC)
    finding = findings(found, working_hours=office)[Rule.OUTSIDE_WORKING_HOURS]
    assert finding.figures["requests"] == 2
    assert finding.figures["hours"] == [{"hour_us": at_four_us, "requests": 2}]
    assert finding.figures["working_hours"] == "mon-fri 08-18"
    learned = office._replace(is_learned=True, requests_max=2.0)
    assert Rule.OUTSIDE_WORKING_HOURS not in findings(found, working_hours=learned)
    assert Rule.OUTSIDE_WORKING_HOURS in findings(found, working_hours=learned._replace(requests_max=1.9))


def test_new_networks__not_seen_before_the_window() -> None:
    """The busiest comes first, with first and last use and what was refused; known networks do not count."""
    counts = [
        count("address", "192.0.2.0/24", 500),
        count("address", "203.0.113.0/24", 4, first_seen_us=FROM_US, last_seen_us=FROM_US + 9),
        count("address", "203.0.113.0/24", 3, "ip_not_allowed", first_seen_us=FROM_US + 1),
        count("address", "2001:db8::/64", 2, first_seen_us=FROM_US + 5),
        count("address", OTHER, 1, first_seen_us=FROM_US),
    ]
    figures = findings(activity(counts=counts))[Rule.NEW_NETWORKS].figures
    assert figures["count"] == 2
    assert figures["networks"][0] == {
        "key": "203.0.113.0/24",
        "requests": 7,
        "refused": 3,
        "first_seen_us": FROM_US,
        "last_seen_us": TO_US - 1,
    }
    assert Rule.NEW_NETWORKS in unchecked(activity(counts=counts))
    assert Rule.NEW_NETWORKS not in unchecked(activity(counts=counts[:-1]))


def test_new_addresses__need_rows_of_7_days() -> None:
    """Also in known networks; when the rows are too few or could not be read, this is said."""
    busiest = (Total("192.0.2.9", 5, 1, FROM_US, FROM_US + 9),)
    known = NewAddresses(FROM_US - 7 * DAY_US, 1, busiest)
    finding = findings(replace(activity(), new_addresses=known))[Rule.NEW_ADDRESSES]
    assert finding.figures["addresses"][0]["key"] == "192.0.2.9"
    assert "--address 192.0.2.9" in finding.next_step
    for unknown in (known._replace(since_us=known.since_us + 1), known._replace(problem="too slow")):
        found = replace(activity(), new_addresses=unknown)
        assert Rule.NEW_ADDRESSES in unchecked(found)
        assert Rule.NEW_ADDRESSES not in findings(found)


def test_scopes__asked_for_and_not_granted() -> None:
    """Each unused scope is named with the command; one that was granted meanwhile is not."""
    counts = [
        count("scope", "crm:read", 5, "scope_missing"),
        count("scope", "orders:read", 5, "scope_missing"),
        count("scope", "finance:read", 0, "scope_missing"),
    ]
    found = findings(activity(counts=counts))[Rule.SCOPE_NOT_GRANTED]
    assert (found.figures["scope"], found.figures["requests"]) == ("crm:read", 5)
    assert "sidecar scopes add acme-erp crm:read" in found.next_step


@pytest.mark.parametrize(
    ("days_ago", "reason", "is_unused"),
    [(89, "ok", False), (89, "rate_limited", False), (91, "ok", True), (1, "scope_missing", True)],
)
def test_unused_scope__for_90_days(days_ago: int, reason: str, is_unused: bool) -> None:
    """A refusal because the scope was not granted is no use of it; the command removes it."""
    use = KeyCount("scope", "orders:read", reason, 0, 0, LONG_AGO_US, TO_US - days_ago * DAY_US)
    found = findings(Activity(FROM_US, TO_US, LONG_AGO_US, STEADY, [use], {}))
    assert (Rule.UNUSED_SCOPE in found) is is_unused
    if is_unused:
        assert found[Rule.UNUSED_SCOPE].next_step == "sidecar scopes remove acme-erp orders:read"


def test_unused_scope__needs_90_days_of_log() -> None:
    """A young log cannot say that a scope is not used."""
    begins_us = TO_US - HISTORY_DAYS * DAY_US
    assert Rule.UNUSED_SCOPE in findings(Activity(FROM_US, TO_US, begins_us, STEADY, [], {}))
    young = Activity(FROM_US, TO_US, begins_us + 1, STEADY, [], {})
    assert Rule.UNUSED_SCOPE not in findings(young)
    assert Rule.UNUSED_SCOPE in unchecked(young)


@pytest.mark.parametrize(
    ("refused", "baseline", "is_found"), [(9, 0, False), (10, 0, True), (30, 100, True), (30, 200, False)]
)
def test_refusals__a_share_that_has_grown(refused: int, baseline: int, is_found: bool) -> None:
    """More than 1 % and more than twice the share before, for at least 10 requests."""
    counts = [
        count("reason", "ok", 500 - refused, baseline=5000 - baseline),
        count("reason", "rate_limited", refused, "rate_limited", baseline=baseline),
    ]
    found = findings(activity(counts=counts))
    assert (Rule.REFUSALS in found) is is_found
    if is_found:
        assert found[Rule.REFUSALS].figures["share"] == refused / 500
        assert found[Rule.REFUSALS].figures["baseline_share"] == round(baseline / 5000, 4)
        assert "sidecar limit set acme-erp" in found[Rule.REFUSALS].next_step


def rotating(expires_at_us: int | None = TO_US + DAY_US) -> Integration:
    """An integration whose key old is replaced by new."""
    old = Credential("old", DIGEST, expires_at_us, replaced_by="new")
    return Integration("acme-erp", "Acme", credentials=(old, Credential("new", DIGEST)))


def test_rotation__the_old_key_is_still_used() -> None:
    """Its last use and its end are shown."""
    counts = [count("credential", "old", 3, last_seen_us=FROM_US + 7), count("credential", "new", 9)]
    finding = findings(activity(counts=counts), rotating())[Rule.ROTATION]
    assert finding.figures == {
        "credential": "old",
        "replaced_by": "new",
        "requests": 3,
        "replacement_requests": 9,
        "last_seen_us": FROM_US + 7,
        "expires_at_us": TO_US + DAY_US,
    }


def test_rotation__the_old_key_is_needed_no_longer() -> None:
    """The command revokes it; an expired one needs none."""
    counts = [count("credential", "old", 0, last_seen_us=FROM_US - DAY_US), count("credential", "new", 9)]
    finding = findings(activity(counts=counts), rotating())[Rule.ROTATION]
    assert finding.next_step == "sidecar credentials revoke acme-erp old"
    assert finding.figures["last_seen_us"] == FROM_US - DAY_US
    assert Rule.ROTATION not in findings(activity(counts=counts), rotating(TO_US))


def test_invalid_keys__from_a_network_of_the_integration() -> None:
    """Only floods from where the integration calls concern it."""
    counts = [count("address", "192.0.2.0/24", 5)]
    found = activity(counts=counts, invalid_keys={"192.0.2.0/24": 70, "203.0.113.0/24": 900})
    figures = findings(found)[Rule.INVALID_KEYS].figures
    assert figures == {"network": "192.0.2.0/24", "requests": 5, "refused_with_key_flood": 70}


def test_would_deny__what_shadow_mode_lets_pass() -> None:
    """Each reason that would have refused is a finding."""
    found = findings(activity(counts=[count("would_deny", "ip_not_allowed", 6)]))
    assert found[Rule.WOULD_DENY].figures["requests"] == 6
    assert found[Rule.WOULD_DENY].figures["reason"] == "ip_not_allowed"

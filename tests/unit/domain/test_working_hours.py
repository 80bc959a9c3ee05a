"""Working hours: written, formatted and learned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.working_hours import (
    DAYS,
    HOUR_US,
    WEEK_HOURS,
    WorkingHoursError,
    format_working_hours,
    hour_of_week,
    learn_working_hours,
    parse_working_hours,
)

MONDAY_US = 1_764_547_200_000_000
"""2025-12-01 00:00 UTC."""


@given(st.frozensets(st.integers(0, WEEK_HOURS - 1), min_size=1))
def test_format__round_trip(hours: frozenset[int]) -> None:
    """What is printed can be passed to --hours and --days again, group by group."""
    found: set[int] = set()
    for group in format_working_hours(hours).split(", "):
        days, text = group.split(" ")
        found |= parse_working_hours(text, days, UTC).hours
    assert found == hours


@given(st.integers(0, 23), st.integers(0, 24), st.sampled_from(DAYS))
def test_parse__an_hour_range_of_one_day(first: int, last: int, day: str) -> None:
    """A range that ends before it begins runs into the next day."""
    if first == last:
        with pytest.raises(WorkingHoursError, match=f"{first}-{last}"):
            parse_working_hours(f"{first}-{last}", day, UTC)
        return
    hours = parse_working_hours(f"{first}-{last}", day, UTC).hours
    start = DAYS.index(day) * 24 + first
    assert hours == {(start + step) % WEEK_HOURS for step in range((last - first) % 24 or 24)}


@pytest.mark.parametrize("text", ["8:30-17", "08", "25-26", "08-18-20", "08-25", "-1-4"])
def test_parse__refuses_what_is_not_hours(text: str) -> None:
    """The error says how hours are written."""
    with pytest.raises(WorkingHoursError, match="08-18"):
        parse_working_hours(text, "", UTC)


@pytest.mark.parametrize("text", ["mo", "mon-", "mon-fry", "1-5"])
def test_parse__refuses_what_is_not_days(text: str) -> None:
    """The error says how days are written."""
    with pytest.raises(WorkingHoursError, match="mon-fri"):
        parse_working_hours("", text, UTC)


def test_hour_of_week__follows_the_time_zone() -> None:
    """Midnight in UTC is 01:00 in Berlin in winter, and 02:00 in summer."""
    berlin = ZoneInfo("Europe/Berlin")
    summer_us = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()) * 1_000_000
    assert [hour_of_week(MONDAY_US, UTC), hour_of_week(MONDAY_US, berlin)] == [0, 1]
    assert hour_of_week(summer_us, berlin) == 2
    assert hour_of_week(MONDAY_US, timezone(timedelta(hours=-1))) == WEEK_HOURS - 1


@given(st.frozensets(st.integers(0, WEEK_HOURS - 1), min_size=1), st.integers(1, 4), st.integers(1, 1000))
def test_learn__finds_the_hours_that_are_worked(hours: frozenset[int], weeks: int, requests: int) -> None:
    """With equal requests in each worked hour, exactly these hours are learned; also around the clock."""
    counts = {
        MONDAY_US + (week * WEEK_HOURS + hour) * HOUR_US: requests for week in range(weeks) for hour in hours
    }
    learned = learn_working_hours(counts, weeks, UTC)
    assert learned is not None
    assert learned.hours == hours
    assert 0 < learned.requests_max < requests


def test_learn__a_few_requests_do_not_make_a_working_hour() -> None:
    """An hour with less than a tenth of the average is quiet; without requests nothing is learned."""
    counts = {MONDAY_US + hour * HOUR_US: 1000 for hour in range(WEEK_HOURS)}
    counts[MONDAY_US + 3 * HOUR_US] = 90
    learned = learn_working_hours(counts, 1, UTC)
    assert learned is not None
    assert set(range(WEEK_HOURS)) - learned.hours == {3}
    assert learned.requests_max == pytest.approx(99.5, abs=0.1)
    assert learn_working_hours({}, 4, UTC) is None

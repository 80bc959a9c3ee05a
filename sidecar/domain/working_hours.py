"""The hours of the week in which an integration works: set by an administrator, or learned from requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

HOUR_US = 3_600_000_000
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEK_HOURS = 168
QUIET_SHARE = 0.1
"""An hour of the week with less than this share of the requests of an average hour is quiet."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOURS = re.compile(r"([0-9]{1,2})-([0-9]{1,2})")
_HOURS_FORM = "write whole hours such as 08-18, or several such as 06-12,22-02"
_DAYS_FORM = "write days such as mon-fri, or several such as mon,wed,sat-sun"


class WorkingHoursError(ValueError):
    """Working hours are not written as they must be; the message says how."""


class WorkingHours(NamedTuple):
    """
    The hours of the week in which requests are expected, in the time zone `zone`.

    `hours` are 0 (Monday from midnight to 01:00) to 167 (Sunday from 23:00). An hour with more than
    `requests_max` requests outside of them stands out.
    """

    hours: frozenset[int]
    zone: tzinfo
    requests_max: float = 0.0
    is_learned: bool = False

    def includes(self, hour_us: int) -> bool:
        """Whether the hour that begins at *hour_us*, in µs since the epoch, is a working hour."""
        return hour_of_week(hour_us, self.zone) in self.hours


def hour_of_week(hour_us: int, zone: tzinfo) -> int:
    """
    Return the hour of the week, 0 to 167, in *zone*.

    >>> hour_of_week(1_764_000_000_000_000, UTC)  # a Monday, 16:00
    16
    """
    local = (_EPOCH + timedelta(microseconds=hour_us)).astimezone(zone)
    return local.weekday() * 24 + local.hour


def learn_working_hours(requests: Mapping[int, int], weeks: int, zone: tzinfo) -> WorkingHours | None:
    """
    Return the hours of the week that are not quiet; None = there were no requests.

    An hour of the week is quiet if it had less than `QUIET_SHARE` of the requests of an average hour.

    Args:
        requests: requests by the hour's start in µs since the epoch, within whole weeks.
        weeks: how many weeks these are, 1 or more.
        zone: hours are compared in this time zone.
    """
    total = sum(requests.values())
    if not total:
        return None
    by_hour = [0] * WEEK_HOURS
    for hour_us, count in requests.items():
        by_hour[hour_of_week(hour_us, zone)] += count
    quiet = QUIET_SHARE * total / WEEK_HOURS
    hours = frozenset(hour for hour, count in enumerate(by_hour) if count >= quiet)
    return WorkingHours(hours, zone, quiet / weeks, is_learned=True)


def parse_working_hours(hours: str, days: str, zone: tzinfo) -> WorkingHours:
    """
    Parse hours such as `08-18` and days such as `mon-fri`; '' = all.

    Hours past midnight belong to the day on which they begin.

    >>> sorted(parse_working_hours("22-02", "sun", UTC).hours)
    [0, 1, 166, 167]

    Raises:
        WorkingHoursError: the hours or days are not written so.
    """
    spans = [_hours(part) for part in (hours or "00-24").split(",")]
    chosen = {day for part in (days or "mon-sun").lower().split(",") for day in _days(part)}
    return WorkingHours(
        frozenset((day * 24 + hour) % WEEK_HOURS for day in chosen for span in spans for hour in span), zone
    )


def format_working_hours(hours: frozenset[int]) -> str:
    """
    Format hours of the week; neighboring days with the same hours are written together.

    >>> format_working_hours(parse_working_hours("06-12,13-18", "mon-fri", UTC).hours)
    'mon-fri 06-12,13-18'
    >>> format_working_hours(frozenset({0, 5}))
    'mon 00-01,05-06'
    """
    groups: list[tuple[str, list[int]]] = []
    for day in range(7):
        text = _format_hours([hour for hour in range(24) if day * 24 + hour in hours])
        if groups and groups[-1][0] == text:
            groups[-1][1].append(day)
        else:
            groups.append((text, [day]))
    return ", ".join(f"{_format_days(days)} {text}" for text, days in groups if text)


def _hours(text: str) -> range:
    match = _HOURS.fullmatch(text.strip())
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if first == last or first > 23 or last > 24:
        raise WorkingHoursError(f"{text[:40]!a} are not hours of a day; {_HOURS_FORM}")
    return range(first, last if last > first else last + 24)


def _days(text: str) -> list[int]:
    first, dash, last = text.strip().partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        raise WorkingHoursError(f"{text[:40]!a} are not days of the week; {_DAYS_FORM}")
    start = DAYS.index(first)
    length = (DAYS.index(last) - start) % 7 if dash else 0
    return [(start + step) % 7 for step in range(length + 1)]


def _format_hours(hours: list[int]) -> str:
    starts = [hour for hour in hours if hour - 1 not in hours]
    ends = [hour + 1 for hour in hours if hour + 1 not in hours]
    return ",".join(f"{start:02}-{end:02}" for start, end in zip(starts, ends, strict=True))


def _format_days(days: list[int]) -> str:
    return DAYS[days[0]] if len(days) == 1 else f"{DAYS[days[0]]}-{DAYS[days[-1]]}"

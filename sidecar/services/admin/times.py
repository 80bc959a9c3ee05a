"""Converts times between RFC 3339 in the API and microseconds since the epoch."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from sidecar.domain.lifecycle.credentials import TIME_MAX_US

SECOND_US = 1_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def format_time(at_us: int) -> str:
    """
    Format a time.

    >>> format_time(1_764_000_000_000_001)
    '2025-11-24T16:00:00.000001Z'
    """
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def format_optional_time(at_us: int | None) -> str | None:
    """Format an optional time; 0 = unknown."""
    return format_time(at_us) if at_us else None


def parse_time(text: str) -> int:
    """
    Parse a time with an offset (RFC 3339 5.6); digits beyond microseconds are cut.

    >>> parse_time("2025-11-24T17:00+01:00")
    1764000000000000

    Raises:
        ValueError: anything else, or a time outside 1970 ... 2255.
    """
    if not _MOMENT.fullmatch(text):
        raise ValueError("must be a time with an offset, such as 2026-12-01T00:00:00Z")
    try:
        at_us = (datetime.fromisoformat(text.upper()) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise ValueError("no such date or time; check month, day, hour and offset") from None
    if not 0 <= at_us <= TIME_MAX_US:
        raise ValueError("must be a time from 1970 to 2255")
    return at_us

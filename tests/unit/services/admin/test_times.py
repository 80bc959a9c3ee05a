"""Moments outside and inside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.lifecycle.credentials import TIME_MAX_US
from sidecar.services.admin.times import format_optional_time, format_time, parse_time


@given(st.integers(0, TIME_MAX_US))
def test_times__what_is_written_is_read_back(at_us: int) -> None:
    """To the microsecond, over the whole range."""
    assert parse_time(format_time(at_us)) == at_us


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("2025-11-24T16:00:00Z", 1_764_000_000_000_000),
        ("2025-11-24t16:00:00z", 1_764_000_000_000_000),
        ("2025-11-24T16:00Z", 1_764_000_000_000_000),
        ("2025-11-24T18:30:00+02:30", 1_764_000_000_000_000),
        ("2025-11-24T16:00:00.5Z", 1_764_000_000_500_000),
        ("2025-11-24T16:00:00.000001999Z", 1_764_000_000_000_001),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_times__offsets_and_fractions_are_read(text: str, at_us: int) -> None:
    """Digits beyond microseconds are cut."""
    assert parse_time(text) == at_us


@pytest.mark.parametrize(
    "text",
    [
        "2025-11-24T16:00:00",
        "2025-11-24",
        "20251124T160000Z",
        "2025-W48-1T16:00:00Z",
        "2025-02-30T00:00:00Z",
        "2025-11-24T25:00:00Z",
        "2025-11-24T16:00:00+99:00",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2255-12-31T00:00:00Z",
        "1764000000",
        " 2025-11-24T16:00:00Z",
        "2025-11-24T16:00:00Z\n",
        "\u0662025-11-24T16:00:00Z",
        "",
    ],
)
def test_times__anything_else_is_refused(text: str) -> None:
    """With what to write instead."""
    with pytest.raises(ValueError, match=r"must be a time|no such date"):
        parse_time(text)


def test_times__a_moment_that_was_never_noted_is_none() -> None:
    """0 in a record means that."""
    assert (format_optional_time(0), format_optional_time(None)) == (None, None)
    assert format_optional_time(1) == "1970-01-01T00:00:00.000001Z"

"""Moments and durations as people type them."""

from __future__ import annotations

import re
import time

import pytest

from sidecar.cli.exits import CommandError
from sidecar.cli.times import (
    Duration,
    Moment,
    moment_ago,
    moment_of,
    parse_duration,
    parse_when,
    seconds_until,
    shown,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("2h", 7_200), ("90d", 7_776_000), ("1w", 604_800), ("1h30m", 5_400),
     ("0", 0), ("0s", 0)],
)  # fmt: skip
def test_parse_duration__adds_up(text: str, seconds: int) -> None:
    """Numbers with units, one after the other."""
    assert parse_duration("--x", text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1.5h", "-1h", "1y", "1h ", "h", "9999999999d", "999999d", "１h"])
def test_parse_duration__refuses_the_rest(text: str) -> None:
    """A number without a unit could mean anything; the error says how to write it."""
    with pytest.raises(CommandError, match="--x") as caught:
        parse_duration("--x", text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-12-01T00:00Z", Moment("2026-12-01T00:00:00+00:00")),
        ("2026-12-01T00:00:00.5-05:00", Moment("2026-12-01T00:00:00.500000-05:00")),
        ("2026-12-01 00:00+01:00", Moment("2026-12-01T00:00:00+01:00")),
        ("2h", Duration(7_200)),
    ],
)
def test_parse_when__moment_or_duration(text: str, when: Moment | Duration) -> None:
    """Both, wherever an end is named."""
    assert parse_when("--x", text) == when


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("tomorrow", "is neither a time"),
        ("2026-12-01", "has no time zone"),
        ("2026-12-01T00:00", "add Z or an offset"),
        ("2026-13-01T00:00Z", "is neither a time"),
    ],
)
def test_parse_when__refuses_what_could_mean_two_moments(text: str, reported: str) -> None:
    """A moment without an offset is another one elsewhere."""
    with pytest.raises(CommandError, match=reported):
        parse_when("--x", text)


def test_moments__durations_count_from_now() -> None:
    """Forward for an end, backward for a search; both to the second and with an offset."""
    before_s = int(time.time())
    ahead, ago = Moment(moment_of("--x", "1h")), Moment(moment_ago("--x", "1h"))
    after_s = time.time()
    assert before_s + 3_600 <= ahead.unix_s <= after_s + 3_600
    assert before_s - 3_600 <= ago.unix_s <= after_s - 3_600
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", ahead.text)
    assert moment_of("--x", "2026-12-01T00:00Z") == moment_ago("--x", "2026-12-01T00:00Z")


def test_seconds_until__of_a_moment_and_of_a_duration() -> None:
    """Whole seconds, at least one; what has passed is refused."""
    assert seconds_until("--x", "1d") == 86_400
    assert seconds_until("--x", "2200-01-01T00:00Z") > 5_000_000_000
    for text in ("0", "0s", "2020-01-01T00:00Z"):
        with pytest.raises(CommandError, match="is not in the future"):
            seconds_until("--x", text)


def test_shown__is_utc_to_the_second() -> None:
    """As tables show it; what is no moment is shown as it came."""
    assert shown("2026-12-01T01:00:00.999+01:00") == "2026-12-01 00:00:00Z"
    assert (shown(None), shown(None, "never"), shown("soon")) == ("-", "never", "soon")

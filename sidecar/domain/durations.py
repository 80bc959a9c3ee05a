"""
Parses and formats durations such as `90s`, `15m`, `24h` or `30d`, for the command line and the admin API.
"""

from __future__ import annotations

import re

UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
DURATION = re.compile(r"0|(?:[0-9]{1,9}[smhdw])+")
DURATION_S_MAX = 100 * 366 * UNIT_S["d"]
FORM = "90s, 15m, 24h or 30d, or several such as 1h30m"

_PART = re.compile(r"([0-9]+)([smhdw])")


class DurationError(ValueError):
    """A text is not a duration; the message says what is wrong and what is allowed."""


def parse_duration(text: str) -> int:
    """
    Return the seconds of `90s`, `15m`, `24h`, `30d`, `1w` or a combination such as `1h30m`.

    >>> parse_duration("1h30m"), parse_duration("0")
    (5400, 0)

    Raises:
        DurationError: not a duration, or longer than 100 years.
    """
    if not DURATION.fullmatch(text):
        unit = ": the unit is missing" if text.isascii() and text.isdecimal() else ""
        raise DurationError(f"{text[:40]!a} is not a duration{unit}; write {FORM}")
    seconds = sum(int(number) * UNIT_S[unit] for number, unit in _PART.findall(text))
    if seconds > DURATION_S_MAX:
        raise DurationError(f"{text[:40]!a} is longer than 100 years; write a shorter duration")
    return seconds


def format_duration(seconds: int) -> str:
    """
    Format *seconds* in the largest units that fit; `parse_duration` parses the result.

    >>> format_duration(5_400), format_duration(7_776_000), format_duration(0)
    ('1h30m', '90d', '0s')
    """
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, seconds = divmod(seconds, UNIT_S[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"

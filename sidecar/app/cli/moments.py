"""Moments and durations, as people type them and as they are shown."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sidecar.app.cli.exits import EXIT_USAGE, CommandError

UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_PART = re.compile(r"([0-9]+)([smhdw])")
NEVER = "never"


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time, in whole seconds."""

    seconds: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment, in ISO 8601 with its offset, as the API takes it."""

    text: str

    @property
    def unix_s(self) -> float:
        """Seconds since the epoch."""
        return datetime.fromisoformat(self.text).timestamp()


def parse_duration(option: str, text: str) -> int:
    """
    Seconds of `90s`, `15m`, `2h`, `90d`, `1w` or several of them together, such as `1h30m`.

    >>> parse_duration("--overlap", "1h30m")
    5400

    Raises:
        CommandError: anything else, or longer than a century.
    """
    if text == "0":
        return 0
    if not _DURATION.fullmatch(text):
        raise CommandError(
            f"{option} {text!r} is no duration: write 90s, 15m, 2h, 90d or 1w, or several such as 1h30m",
            EXIT_USAGE,
        )
    seconds = sum(int(number) * UNIT_S[unit] for number, unit in _PART.findall(text))
    if seconds > 100 * 366 * UNIT_S["d"]:
        raise CommandError(f"{option} {text!r} is longer than a century", EXIT_USAGE)
    return seconds


def parse_when(option: str, text: str) -> Moment | Duration:
    """
    A moment (`2026-12-01T00:00Z`, any offset, but with one) or a duration from now on (`2h`).

    >>> parse_when("--until", "2026-12-01T02:00+02:00")
    Moment(text='2026-12-01T02:00:00+02:00')

    Raises:
        CommandError: neither, or a moment without an offset, which would mean another one elsewhere.
    """
    if _DURATION.fullmatch(text):
        return Duration(parse_duration(option, text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"{option} {text!r} is neither a moment such as 2026-12-01T00:00Z nor a duration such as 2h or"
            " 90d",
            EXIT_USAGE,
        ) from None
    if moment.tzinfo is None:
        raise CommandError(
            f"{option} {text!r} does not say in which time zone: end it with Z or an offset, such as +01:00",
            EXIT_USAGE,
        )
    return Moment(moment.isoformat())


def moment_of(option: str, text: str) -> str:
    """
    The moment that *text* means, for the API; a duration counts from now, by this machine's clock.

    Raises:
        CommandError: see `parse_when`.
    """
    when = parse_when(option, text)
    if isinstance(when, Moment):
        return when.text
    return (datetime.now(UTC) + timedelta(seconds=when.seconds)).isoformat(timespec="seconds")


def seconds_until(option: str, text: str) -> int:
    """
    How long it is until what *text* means, in whole seconds, at least 1.

    Raises:
        CommandError: see `parse_when`, or a moment that has passed.
    """
    when = parse_when(option, text)
    if isinstance(when, Duration):
        return max(1, when.seconds)
    seconds = int(when.unix_s - time.time())
    if seconds < 1:
        raise CommandError(f"{option} {text!r} has passed already", EXIT_USAGE)
    return seconds


def shown(moment: str | None, otherwise: str = "-") -> str:
    """
    A moment of the API as a table shows it: UTC, to the second; *otherwise* for None.

    >>> shown("2026-11-24T13:12:03.000001Z")
    '2026-11-24 13:12:03Z'
    """
    if not moment:
        return otherwise
    try:
        return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except ValueError:
        return moment


def moment_ago(option: str, text: str) -> str:
    """
    The moment that *text* means, for the API; a duration counts back from now, by this machine's clock.

    Raises:
        CommandError: see `parse_when`.
    """
    when = parse_when(option, text)
    if isinstance(when, Moment):
        return when.text
    return (datetime.now(UTC) - timedelta(seconds=when.seconds)).isoformat(timespec="seconds")

"""Parses and formats times and durations of the command line."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.domain import durations
from sidecar.domain.administrators import TOKEN_LIFETIME_MAX_US

NEVER = "never"


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration in whole seconds."""

    seconds: int

    @property
    def text(self) -> str:
        """The duration in the API's form."""
        return durations.format_duration(self.seconds)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in ISO 8601 with an offset, the API's form."""

    text: str

    @property
    def unix_s(self) -> float:
        """Seconds since the epoch."""
        return datetime.fromisoformat(self.text).timestamp()


def parse_duration(option: str, text: str) -> int:
    """
    Return the seconds of a duration; see `sidecar.domain.durations`.

    >>> parse_duration("--overlap", "1h30m")
    5400

    Raises:
        CommandError: it is not a duration, or longer than a century.
    """
    try:
        return durations.parse_duration(text)
    except durations.DurationError as error:
        raise CommandError(f"{option} {error}", EXIT_USAGE) from None


def checked_duration(option: str, text: str) -> str:
    """
    Check a duration and return it in the API's form.

    Raises:
        CommandError: see `parse_duration`.
    """
    return durations.format_duration(parse_duration(option, text))


def duration_within(option: str, text: str, longest_s: int) -> int:
    """
    Return the seconds of a duration from one second to *longest_s*.

    Raises:
        CommandError: it is not a duration, or out of range.
    """
    seconds = parse_duration(option, text)
    if not 1 <= seconds <= longest_s:
        longest = durations.format_duration(longest_s)
        raise CommandError(f"{option} is {text}; it must be 1s to {longest}", EXIT_USAGE)
    return seconds


def parse_when(option: str, text: str) -> Moment | Duration:
    """
    Parse a time with an offset (`2026-12-01T00:00Z`) or a duration from now (`2h`).

    >>> parse_when("--until", "2026-12-01T02:00+02:00")
    Moment(text='2026-12-01T02:00:00+02:00')

    Raises:
        CommandError: neither, or a time without an offset.
    """
    if durations.DURATION.fullmatch(text):
        return Duration(parse_duration(option, text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"{option} {text!r} is neither a time nor a duration; write a time such as 2026-12-01T00:00Z or"
            f" a duration such as {durations.FORM}",
            EXIT_USAGE,
        ) from None
    if moment.tzinfo is None:
        raise CommandError(
            f"{option} {text!r} has no time zone; add Z or an offset, such as +01:00", EXIT_USAGE
        )
    return Moment(moment.isoformat())


def moment_of(option: str, text: str) -> str:
    """
    Return the time *text*, for the API; a duration counts from now, by this machine's clock.

    Raises:
        CommandError: see `parse_when`.
    """
    return _moment(option, text, 1)


def seconds_until(option: str, text: str) -> int:
    """
    Return the whole seconds until *text*, at least 1.

    Raises:
        CommandError: see `parse_when`; or a time in the past.
    """
    when = parse_when(option, text)
    seconds = when.seconds if isinstance(when, Duration) else int(when.unix_s - time.time())
    if seconds < 1:
        raise CommandError(
            f"{option} {text!r} is not in the future; write a later time, or a duration such as 90d",
            EXIT_USAGE,
        )
    return seconds


def token_lifetime(option: str, text: str) -> int:
    """
    Return the lifetime of an administrator's token, in whole seconds.

    Raises:
        CommandError: see `seconds_until`; or longer than the longest lifetime.
    """
    seconds = seconds_until(option, text)
    longest_s = TOKEN_LIFETIME_MAX_US // 1_000_000
    if seconds > longest_s:
        longest = durations.format_duration(longest_s)
        raise CommandError(
            f"{option} is {text}; an administrator's token may live at most {longest}", EXIT_USAGE
        )
    return seconds


def shown(moment: str | None, otherwise: str = "-") -> str:
    """
    Format a time of the API for a table: UTC, to the second; *otherwise* for None.

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
    Return the time *text*, for the API; a duration counts back from now, by this machine's clock.

    Raises:
        CommandError: see `parse_when`.
    """
    return _moment(option, text, -1)


def _moment(option: str, text: str, direction: int) -> str:
    when = parse_when(option, text)
    if isinstance(when, Moment):
        return when.text
    return (datetime.now(UTC) + direction * timedelta(seconds=when.seconds)).isoformat(timespec="seconds")

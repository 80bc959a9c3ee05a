"""Moments and durations, as people type them and as they are shown."""

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
    """A length of time, in whole seconds."""

    seconds: int

    @property
    def text(self) -> str:
        """As the API takes it."""
        return durations.format_duration(self.seconds)


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
    Seconds of a duration: see `sidecar.domain.durations`.

    >>> parse_duration("--overlap", "1h30m")
    5400

    Raises:
        CommandError: it is none, or longer than a century.
    """
    try:
        return durations.parse_duration(text)
    except durations.DurationError as error:
        raise CommandError(f"{option} {error}", EXIT_USAGE) from None


def checked_duration(option: str, text: str) -> str:
    """
    A duration as the API takes it.

    Raises:
        CommandError: see `parse_duration`.
    """
    return durations.format_duration(parse_duration(option, text))


def duration_within(option: str, text: str, longest_s: int) -> int:
    """
    Seconds of a duration of at least one second.

    Raises:
        CommandError: it is none, shorter, or longer than *longest_s*.
    """
    seconds = parse_duration(option, text)
    if not 1 <= seconds <= longest_s:
        longest = durations.format_duration(longest_s)
        raise CommandError(f"{option} is {text}; it must be 1s to {longest}", EXIT_USAGE)
    return seconds


def parse_when(option: str, text: str) -> Moment | Duration:
    """
    A moment (`2026-12-01T00:00Z`, any offset, but with one) or a duration from now on (`2h`).

    >>> parse_when("--until", "2026-12-01T02:00+02:00")
    Moment(text='2026-12-01T02:00:00+02:00')

    Raises:
        CommandError: neither, or a moment without an offset, which would mean another one elsewhere.
    """
    if durations.DURATION.fullmatch(text):
        return Duration(parse_duration(option, text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"{option} {text!r} is neither a time such as 2026-12-01T00:00Z nor a duration; write the"
            f" duration as {durations.FORM}",
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
    seconds = when.seconds if isinstance(when, Duration) else int(when.unix_s - time.time())
    if seconds < 1:
        raise CommandError(f"{option} {text!r} is not in the future; write 90d, or a later time", EXIT_USAGE)
    return seconds


def token_lifetime(option: str, text: str) -> int:
    """
    How long an administrator's token is to live, in whole seconds.

    Raises:
        CommandError: see `seconds_until`; or longer than such a token may live.
    """
    seconds = seconds_until(option, text)
    longest_s = TOKEN_LIFETIME_MAX_US // 1_000_000
    if seconds > longest_s:
        longest = durations.format_duration(longest_s)
        raise CommandError(
            f"{option} {text!r} is longer than {longest}, the longest life of an administrator's token",
            EXIT_USAGE,
        )
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

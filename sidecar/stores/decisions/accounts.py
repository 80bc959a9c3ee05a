"""
Counts the decisions of every process whose rows are missing, also after a process was killed.

Each frame has the counts of its process so far. What they grew by, less the rows of the frame, was dropped,
left out or lost. The accounts advance only with what is on the disk: a writer that starts with the accounts
of a killed writer finds in the next frames what that writer lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from sidecar.stores.decisions.frames import Counts, Frame, Kind
from sidecar.stores.decisions.missing import Cause, MissingSpan, merged

SAMPLED_INTERVAL_US = 3_600_000_000
"""How often the rows that sampling left out are recorded."""


ENDED_MAX = 256
"""Ended processes that are remembered: far more than end between two batches."""


class Account(NamedTuple):
    """
    What is known of one process: all decisions before `settled_us` are in `counts`.

    `is_complete` = the process has sent its last frame.
    """

    worker: int
    settled_us: int
    counts: Counts
    is_complete: bool = False


class Accounts:
    """The accounts of all processes that send frames, by their unique name."""

    def __init__(self, saved: Iterable[tuple[str, Any]] = (), ended: Iterable[str] = ()) -> None:
        """Continue with the accounts of `saved` and the processes of `ended`."""
        self._ended = deque(ended, ENDED_MAX)
        self._accounts = {
            process: Account(worker, settled_us, Counts(*counts), is_complete)
            for process, (worker, settled_us, counts, is_complete) in saved
        }

    def ended(self) -> list[str]:
        """
        Return the names of processes whose end is accounted for, the last ENDED_MAX.

        The supervisor reports each end to every new writer until it finds the name here.
        """
        return list(self._ended)

    def saved(self) -> list[tuple[str, Account]]:
        """Return the accounts in a form for JSON."""
        return list(self._accounts.items())

    def receive(self, frame: Frame) -> list[MissingSpan]:
        """Add *frame* to its process's account; return the spans of rows missing since the last frame."""
        before = self._accounts.get(frame.process)
        if before is None:
            first_us = frame.lines.span_us[0] if frame.lines.numbers else frame.settled_us
            before = Account(frame.worker, first_us, Counts())
        if frame.kind == Kind.ENDED:
            if frame.process in self._ended:
                return []
            self._ended.append(frame.process)
            self._accounts.pop(frame.process, None)
            return list(_lost_with_worker(before, frame))
        is_complete = frame.kind == Kind.LAST
        self._accounts[frame.process] = Account(frame.worker, frame.settled_us, frame.counts, is_complete)
        return list(_missing(before, frame))

    def unknown(self, now_us: int) -> list[MissingSpan]:
        """
        Return spans of unknown numbers of rows for the processes that sent no last frame.

        For a writer whose supervisor and workers have ended without telling: nobody counts their decisions.
        """
        accounts = [account for account in self._accounts.values() if not account.is_complete]
        self._accounts = {}
        return [
            MissingSpan(
                min(a.settled_us, now_us), max(a.settled_us, now_us), a.worker, -1, -1, Cause.WORKER_ENDED
            )
            for a in accounts
        ]


def _missing(before: Account, frame: Frame) -> Iterator[MissingSpan]:
    counts, known = frame.counts, before.counts
    allowed, refused = frame.rows
    found = (
        (
            Cause.WRITER_ENDED,
            counts.allowed - known.allowed - allowed,
            counts.refused - known.refused - refused,
        ),
        (
            Cause.BUFFER_FULL,
            counts.dropped_allowed - known.dropped_allowed,
            counts.dropped_refused - known.dropped_refused,
        ),
        (Cause.SAMPLED, counts.sampled - known.sampled, 0),
    )
    for cause, missing_allowed, missing_refused in found:
        yield from _span(before, frame, cause, missing_allowed, missing_refused)


def _lost_with_worker(before: Account, frame: Frame) -> Iterator[MissingSpan]:
    known = before.counts
    allowed = frame.counts.allowed - known.allowed - known.dropped_allowed - known.sampled
    refused = frame.counts.refused - known.refused - known.dropped_refused
    yield from _span(before, frame, Cause.WORKER_ENDED, allowed, refused)


def _span(before: Account, frame: Frame, cause: Cause, allowed: int, refused: int) -> Iterator[MissingSpan]:
    allowed, refused = max(0, allowed), max(0, refused)
    if allowed or refused:
        from_us = min(before.settled_us, frame.sent_us)  # the clock may have stepped back
        to_us = max(before.settled_us, frame.sent_us)
        yield MissingSpan(from_us, to_us, frame.worker, allowed, refused, cause)


class PendingSpans:
    """Spans that are not in the file yet, merged by worker and cause, so that their number is bounded."""

    def __init__(self) -> None:
        """Begin without spans."""
        self._spans: dict[tuple[int, str], MissingSpan] = {}

    def add(self, spans: Iterable[MissingSpan]) -> None:
        """Add *spans*."""
        for span in spans:
            key = span.worker, span.cause
            known = self._spans.get(key)
            self._spans[key] = span if known is None else merged([known, span])

    def due(self, is_ending: bool = False) -> list[MissingSpan]:
        """Return the spans to write now: sampled rows once an hour, and at the end; others at once."""
        return [
            span
            for span in self._spans.values()
            if is_ending or span.cause != Cause.SAMPLED or span.to_us - span.from_us >= SAMPLED_INTERVAL_US
        ]

    def remove(self, spans: Iterable[MissingSpan]) -> None:
        """Take *spans*, of `due`, off: they are in the file; what was merged into one since stays."""
        for span in spans:
            key = span.worker, span.cause
            known = self._spans.get(key)
            if known is None:
                continue
            rest_allowed, rest_refused = known.allowed - span.allowed, known.refused - span.refused
            if rest_allowed or rest_refused:
                self._spans[key] = known._replace(
                    from_us=min(span.to_us, known.to_us), allowed=rest_allowed, refused=rest_refused
                )
            else:
                del self._spans[key]

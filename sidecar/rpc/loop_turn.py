"""
Turns of the event loop: decides when takes are sent to the shared store and when answers are written.

A loop polls its sockets once a turn, then handles everything that was readable. A store reply that arrives
meanwhile would wait for the next turn, behind all requests of that turn: under load the longest part of a
decision. So the store's connections are also read between the reads of a turn and when the turn ends, and
answers are written then. A long turn also sends its takes after each read, so that the store works on the
first takes while the sidecar reads further requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Loop(Protocol):
    """The part of an event loop that `LoopTurn` uses."""

    def call_soon(self, callback: Callable[[], None], /) -> object:
        """Call *callback* after all events of this turn."""


class TakeSender(Protocol):
    """The store's side: the pipeline to one of its nodes."""

    @property
    def is_waiting(self) -> bool:
        """Whether batches are in flight."""

    def send_early(self) -> bool:
        """Send the queued takes now if waiting for the end of the turn gains nothing; True = sent."""

    def send_at_turn_end(self) -> bool:
        """Send the queued takes if the in-flight limit permits; True = sent."""

    def read_replies(self) -> bool:
        """Deliver the replies that have arrived since the last poll; True = there were some."""


class AnswerWriter(Protocol):
    """The transport's side: a connection of a caller."""

    def flush_pending(self) -> None:
        """Write the queued answers if they are not written yet. Never raises."""


class LoopTurn:
    """
    Coordinates the transport and the store of one event loop within a turn; both share this object.

    Each side registers what it has to send with `send_soon` or `write_soon`. Two hooks send it:
    `after_read_batch`, which the transport calls, and `before_turn_end`, which the loop calls. The store
    calls `write_answers` when the loop has read replies for it.
    """

    __slots__ = ("_is_due", "_is_exchanging", "_loop", "_senders", "_waiting", "_writers")

    def __init__(self, loop: Loop) -> None:
        """Schedule on *loop*."""
        self._loop = loop
        self._senders: list[TakeSender] = []
        self._waiting: list[TakeSender] = []
        self._writers: list[AnswerWriter] = []
        self._is_due = False
        self._is_exchanging = False

    def send_soon(self, sender: TakeSender) -> None:
        """Register *sender*, which has just queued its first take of this turn."""
        self._senders.append(sender)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.before_turn_end)

    def write_soon(self, writer: AnswerWriter) -> None:
        """Register *writer*, which has queued answers; they are written by the end of the turn."""
        self._writers.append(writer)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.before_turn_end)

    def after_read_batch(self) -> None:
        """Send takes and read replies after some of the turn's requests."""
        senders = self._senders
        if senders or self._waiting:
            self._exchange(senders, is_turn_end=False)

    def before_turn_end(self) -> None:
        """Send all takes and write all answers after the turn's last event."""
        self._is_due = False
        try:
            if self._senders:
                senders, self._senders = self._senders, []
                self._exchange(senders, is_turn_end=True)
        finally:
            self.write_answers()

    def write_answers(self) -> None:
        """Write all queued answers; during an exchange with the store, after the exchange."""
        if self._writers and not self._is_exchanging:
            writers, self._writers = self._writers, []
            for writer in writers:
                writer.flush_pending()

    def _exchange(self, senders: list[TakeSender], *, is_turn_end: bool) -> None:
        """Send to all nodes first, so that they work while this process reads the other nodes' replies."""
        self._is_exchanging = True
        waiting, has_sent, has_read = self._waiting, False, False
        try:
            for sender in senders:
                has_sent |= sender.send_at_turn_end() if is_turn_end else sender.send_early()
            for sender in waiting:
                has_read |= sender.read_replies()
            if has_sent or has_read:
                self._waiting = [
                    sender for sender in dict.fromkeys((*waiting, *senders)) if sender.is_waiting
                ]
        finally:
            self._is_exchanging = False
        if has_read:
            self.write_answers()

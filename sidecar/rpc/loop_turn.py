"""
Turns of the event loop, where the transport and the shared store meet: when takes and answers leave.

A loop looks at its sockets once a turn, then handles everything that they brought. A store's reply that comes
meanwhile would wait for the next turn, behind all the requests which that turn reads: under load the longest
part of a decision's way. So the store's connections are read between the reads of a turn and once more when
the turn ends, and answers leave then. A turn that a stop of the core has made long sends its takes read by
read, too: the server works on the first takes while we read further requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Loop(Protocol):
    """What is needed of an event loop."""

    def call_soon(self, callback: Callable[[], None], /) -> object:
        """Call *callback* when everything that this turn brought has been handled."""


class TakeSender(Protocol):
    """The store's side: the pipeline to one of its nodes."""

    @property
    def is_waiting(self) -> bool:
        """Whether replies to batches are still to come."""

    def send_early(self) -> bool:
        """Send the queued takes if they are worth a batch before the turn ends; True = they were."""

    def send_at_turn_end(self) -> bool:
        """Send the queued takes; True = there were some, and room in flight for them."""

    def read_replies(self) -> bool:
        """Hand out the replies that have come since the loop looked; True = there were some."""


class AnswerWriter(Protocol):
    """The transport's side: a connection of a caller."""

    def flush_pending(self) -> None:
        """Write the queued answers, unless that has happened. Never raises."""


class LoopTurn:
    """
    What one loop's transport and store do together in a turn; both are given the same object.

    Each side says what it has to send: `send_soon`, `write_soon`. Two hooks send it: `after_read_batch`,
    called by the transport, and `before_turn_end`, called by the loop. When the loop has read replies for the
    store, the store calls `write_answers`.
    """

    __slots__ = ("_is_due", "_is_exchanging", "_loop", "_senders", "_waiting", "_writers")

    def __init__(self, loop: Loop) -> None:
        """Begin with nothing to send."""
        self._loop = loop
        self._senders: list[TakeSender] = []
        self._waiting: list[TakeSender] = []
        self._writers: list[AnswerWriter] = []
        self._is_due = False
        self._is_exchanging = False

    def send_soon(self, sender: TakeSender) -> None:
        """Have *sender* send the turn's takes, the first of which it has just queued."""
        self._senders.append(sender)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.before_turn_end)

    def write_soon(self, writer: AnswerWriter) -> None:
        """Have *writer* write the answers that it has queued: when the turn ends, or earlier with others."""
        self._writers.append(writer)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.before_turn_end)

    def after_read_batch(self) -> None:
        """Some requests of the turn have been handled, and others may follow."""
        senders = self._senders
        if senders or self._waiting:
            self._exchange(senders, is_turn_end=False)

    def before_turn_end(self) -> None:
        """Everything that the turn brought has been handled."""
        self._is_due = False
        try:
            if self._senders:
                senders, self._senders = self._senders, []
                self._exchange(senders, is_turn_end=True)
        finally:
            self.write_answers()

    def write_answers(self) -> None:
        """Write what connections have queued, all at once; during an exchange with the store, after it."""
        if self._writers and not self._is_exchanging:
            writers, self._writers = self._writers, []
            for writer in writers:
                writer.flush_pending()

    def _exchange(self, senders: list[TakeSender], *, is_turn_end: bool) -> None:
        """Send to all nodes first: they work while we hand out what others have replied."""
        self._is_exchanging = True
        waiting, has_sent, has_read = self._waiting, False, False
        try:
            for sender in senders:
                has_sent |= sender.send_at_turn_end() if is_turn_end else sender.send_early()
            for sender in waiting:
                has_read |= sender.read_replies()
            if has_sent or has_read:
                self._waiting = [each for each in dict.fromkeys((*waiting, *senders)) if each.is_waiting]
        finally:
            self._is_exchanging = False
        if has_read:
            self.write_answers()

"""
Turns of the event loop, for all lanes of a store: when takes leave, and when replies are heard.

A loop looks at its sockets once a turn, then handles everything that they brought. A reply that comes
meanwhile would wait for the next turn, amid all the requests which that one reads: under load the longest
part of a decision's way. So the links are looked at between the parts of a turn and once more when it
ends, and answers leave then. A turn that a stop of the core has made long sends its takes part by part, too:
the server works on the first of them while we read the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class TurnLane(Protocol):
    """What a turn needs of a lane."""

    @property
    def is_waiting(self) -> bool:
        """Whether replies to batches are still to come."""

    def send_early(self) -> bool:
        """Send what has gathered if that is worth a batch of its own before the turn ends; True = it was."""

    def end_turn(self) -> bool:
        """Send what the turn has gathered; True = there was something, and room for it."""

    def hear(self) -> bool:
        """Hand out the replies that have come since the loop looked; True = there were some."""


class LoopTurn:
    """
    Ends parts and turns for all lanes of a store.

    *on_answers* is called when takes have been told their outcome, once for all that came in together: the
    moment to write what they brought about.
    """

    __slots__ = ("_gathering", "_is_ending", "_loop", "_on_answers", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_answers: Callable[[], None]) -> None:
        """Wait for takes."""
        self._loop = loop
        self._on_answers = on_answers
        self._gathering: list[TurnLane] = []
        self._waiting: list[TurnLane] = []
        self._is_ending = False

    def end_with(self, lane: TurnLane) -> None:
        """Have *lane*, which has just gathered the turn's first take, take part in the end of this turn."""
        if not self._gathering:
            self._loop.call_soon(self._end)
        self._gathering.append(lane)

    def end_part(self) -> None:
        """Some requests of the turn have been handled, and others may follow."""
        gathering = self._gathering
        if gathering or self._waiting:
            self._finish(gathering, is_turn=False)

    def heard(self) -> None:
        """The replies of one read have been handed out."""
        if not self._is_ending:
            self._on_answers()

    def _end(self) -> None:
        lanes, self._gathering = self._gathering, []
        self._finish(lanes, is_turn=True)

    def _finish(self, lanes: list[TurnLane], *, is_turn: bool) -> None:
        """Send to all nodes first: they work while we hand out what others have replied."""
        self._is_ending = True
        asked, has_sent, has_heard = self._waiting, False, False
        try:
            for lane in lanes:
                has_sent |= lane.end_turn() if is_turn else lane.send_early()
            for lane in asked:
                has_heard |= lane.hear()
            if has_sent or has_heard:
                self._waiting = [lane for lane in dict.fromkeys((*asked, *lanes)) if lane.is_waiting]
        finally:
            self._is_ending = False
        if has_heard:
            self._on_answers()

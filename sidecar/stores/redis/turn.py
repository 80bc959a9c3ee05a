"""
The end of a turn of the event loop, for all lanes of a store: takes leave, and replies are heard.

A loop looks at its sockets once a turn, then handles everything that they brought. A reply that comes
meanwhile would wait for the next turn, amid all the requests which that one reads: under load the longest
part of a decision's way. So the links are looked at once more when a turn ends, and its answers leave then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class TurnLane(Protocol):
    """What the end of a turn needs of a lane."""

    def end_turn(self) -> bool:
        """Send what the turn has gathered; True = replies to earlier batches are still to come."""

    def hear(self) -> None:
        """Hand out the replies that have come since the loop looked."""


class TurnEnd:
    """
    Ends each turn once for all lanes that gathered takes in it.

    *on_answers* is called when takes have been told their outcome, once for all that came in together: the
    moment to write what they brought about.
    """

    __slots__ = ("_is_ending", "_lanes", "_loop", "_on_answers")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_answers: Callable[[], None]) -> None:
        """Wait for takes."""
        self._loop = loop
        self._on_answers = on_answers
        self._lanes: list[TurnLane] = []
        self._is_ending = False

    def end_with(self, lane: TurnLane) -> None:
        """Have *lane*, which has just gathered the turn's first take, take part in the end of this turn."""
        if not self._lanes:
            self._loop.call_soon(self._end)
        self._lanes.append(lane)

    def heard(self) -> None:
        """The replies of one read have been handed out."""
        if not self._is_ending:
            self._on_answers()

    def _end(self) -> None:
        lanes, self._lanes = self._lanes, []
        self._is_ending = True
        try:
            # Send to all nodes first: they work while we hand out what others have replied.
            waiting = [lane for lane in lanes if lane.end_turn()]
            for lane in waiting:
                lane.hear()
        finally:
            self._is_ending = False
        if waiting:
            self._on_answers()

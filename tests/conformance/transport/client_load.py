"""Parallel calls that follow one another until told to stop, as a busy proxy makes them."""

from __future__ import annotations

import threading
from types import TracebackType

import grpc

from tests.waiting import PATIENCE_S

from .probe import path


class ClientLoad:
    """Keeps a number of calls in flight on one channel; counts answers and keeps every error."""

    def __init__(
        self, channel: grpc.Channel, parallel: int = 32, tolerated: frozenset[grpc.StatusCode] = frozenset()
    ) -> None:
        """Call Echo *parallel* times at a time; *tolerated* codes are counted apart from other errors."""
        self._echo = channel.unary_unary(path("Echo"))
        self._parallel = parallel
        self._tolerated = tolerated
        self._changed = threading.Condition()
        self._in_flight = 0
        self._is_stopping = False
        self.answered = 0
        self.refused = 0
        self.errors: list[str] = []

    def __enter__(self) -> ClientLoad:
        for _ in range(self._parallel):
            self._next()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_stopping = True
            done = self._changed.wait_for(lambda: self._in_flight == 0, PATIENCE_S)
        assert done or error, f"{self._in_flight} calls never ended"

    def _next(self) -> None:
        with self._changed:
            if self._is_stopping or len(self.errors) > 10:
                return
            self._in_flight += 1
        self._echo.future(b"load", timeout=PATIENCE_S).add_done_callback(self._ended)

    def _ended(self, future: grpc.Future) -> None:
        error = future.exception()
        with self._changed:
            self._in_flight -= 1
            if error is None:
                self.answered += 1
            elif future.code() in self._tolerated:
                self.refused += 1
            else:
                self.errors.append(str(error))
            self._changed.notify_all()
        self._next()

    def wait_for_more(self, count: int) -> None:
        """Wait until *count* more calls were answered; an error ends the waiting."""
        with self._changed:
            goal = self.answered + count
            done = self._changed.wait_for(lambda: self.answered >= goal or self.errors, PATIENCE_S)
            assert done, f"{self.answered} of {goal} calls after {PATIENCE_S} s"
            assert self.errors == [], self.errors[0]

"""What goes on in separate threads while a `with` block is open."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class InBackground(ABC):
    """
    Threads that go on until the block ends.

    What a block waits for is something that they did, not a time.
    """

    def __init__(self, what: str, threads: int, timeout_s: float) -> None:
        """*threads*, each named for *what* it is; each ends within *timeout_s* after the block."""
        self.is_over = threading.Event()
        self._timeout_s = timeout_s
        self._threads = [
            threading.Thread(target=self.go_on, args=(number,), name=f"{what} {number}")
            for number in range(threads)
        ]

    @abstractmethod
    def go_on(self, number: int) -> None:
        """Be thread *number*, until `is_over`."""

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and wait for the last thing that each does."""
        self.end()

    def end(self) -> None:
        """End before the block does."""
        self.is_over.set()
        for thread in self._threads:
            thread.join(self._timeout_s)

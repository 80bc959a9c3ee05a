"""Waiting for a fact that no event announces, such as a line in a log of another process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

TICK_S = 0.01


def eventually(condition: Callable[[], Value], timeout_s: float = 15.0, what: str = "") -> Value:
    """
    Ask *condition* again and again until it returns something true, and return that.

    Raises:
        AssertionError: it did not within *timeout_s*; names *what*, else the condition.
    """
    never = threading.Event()
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        never.wait(TICK_S)

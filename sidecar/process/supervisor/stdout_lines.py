"""Decisions as JSON lines on standard output, for Vector, Fluent Bit or Loki."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from sidecar.domain.decision_rows import COLUMNS, DecisionRow

WAITING_BYTES_MAX = 4 << 20
"""Lines that wait for a slow reader; beyond that, the oldest are dropped and counted."""
CLOSE_TIMEOUT_S = 2.0


class StdoutLines:
    """Writes lines to a file descriptor in a thread, so that a slow reader delays nothing."""

    def __init__(self, fd: int) -> None:
        """Write to *fd*."""
        self.dropped = 0
        """Lines that were dropped because the reader was too slow or has exited."""
        self._fd = fd
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, rows: Sequence[DecisionRow]) -> None:
        """Write *rows*, one line each."""
        text = "".join(map(json_line, rows)).encode()
        with self._changed:
            self._waiting.append((text, len(rows)))
            self._bytes += len(text)
            while self._bytes > WAITING_BYTES_MAX:
                dropped, lines = self._waiting.popleft()
                self._bytes -= len(dropped)
                self.dropped += lines
            self._changed.notify()

    def close(self) -> None:
        """Write the rest within `CLOSE_TIMEOUT_S`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._is_closing:
                        return
                    self._changed.wait()
                text, lines = self._waiting.popleft()
                self._bytes -= len(text)
            try:
                while text:
                    text = text[os.write(self._fd, text) :]
            except OSError:  # nobody reads
                self.dropped += lines


def json_line(row: DecisionRow) -> str:
    """Return *row* as one line; values that are unknown are left out, and times are UTC in ISO 8601."""
    fields: dict[str, object] = {}
    for column, value in zip(COLUMNS, row, strict=True):
        if column.is_time:
            if value:
                moment = datetime.fromtimestamp(int(value) // 1_000_000, UTC)
                fields[column.name] = f"{moment:%Y-%m-%dT%H:%M:%S}.{int(value) % 1_000_000:06}Z"
        elif value != "":
            fields[column.name] = value
    return json.dumps(fields, separators=(",", ":")) + "\n"

"""
Logs: one JSON object a line on standard error, or plain text for a terminal; no API key, ever.

Logging never holds up a decision: lines go through a bounded queue to a thread that writes, so a
reader that stalls costs lines, not latency. A flood is cut to `LINES_PER_MINUTE_MAX`. Lines that were
lost either way are counted, and the count is written as soon as there is room.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic_ns
from typing import Any, TextIO

from sidecar.domain.bucket import Level, Quota, draw

QUEUE_LINES_MAX = 1_000
LINES_PER_MINUTE_MAX = 6_000
LINES_BURST = 1_000
TEXT_CHARS_MAX = 4_096
"""Of a message, of a field and of a stack trace, which keeps its end."""
FIELDS_MAX = 20
LIST_ITEMS_MAX = 20
CLOSE_TIMEOUT_S = 2.0

_FIELDS = "event_fields"

# As `domain.api_keys` writes them: <prefix>_<credential id>_<secret and checksum>; also cut-off ones.
_API_KEY = re.compile(r"\b([0-9A-Za-z-]{1,16}_[0-9A-Za-z-]{1,32})_[0-9A-Za-z]{12,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def log_event(logger: logging.Logger, level: int, message: str, /, **fields: object) -> None:
    """Log *message*, the same text for every event of its kind, with what is particular in *fields*."""
    logger.log(level, message, extra={_FIELDS: fields})


def without_api_keys(text: str) -> str:
    """
    *text* with the secret of each API key in it taken out; the public credential id stays.

    >>> without_api_keys("got sck_q2R8mW0bTz_" + "x" * 36)
    'got sck_q2R8mW0bTz_[secret]'
    """
    return _API_KEY.sub(r"\1_[secret]", text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`; the length is bounded by the bounds of its parts."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:TEXT_CHARS_MAX],
        }
        for name, value in _event_fields(record):
            entry.setdefault(name, _bounded(value))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)[-TEXT_CHARS_MAX:]
        return without_api_keys(json.dumps(entry))


class TextFormatter(logging.Formatter):
    """Time of day, level, message and fields, for people; control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f"  {name}={_shown(value)}" for name, value in _event_fields(record))
        text = record.getMessage()[:TEXT_CHARS_MAX] + fields
        line = f"{moment} {record.levelname.lower():<7} {_CONTROL.sub(_escaped, text)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)[-TEXT_CHARS_MAX:]
        return without_api_keys(line)


def _event_fields(record: logging.LogRecord) -> list[tuple[str, object]]:
    fields: dict[str, object] = getattr(record, _FIELDS, {})
    return list(fields.items())[:FIELDS_MAX]


def _bounded(value: object) -> object:
    """*value* as JSON can hold it, of bounded size."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_bounded(item) for item in value[:LIST_ITEMS_MAX]]
    return str(value)[:TEXT_CHARS_MAX]


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value[:LIST_ITEMS_MAX])
    return str(value)[:TEXT_CHARS_MAX]


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


class LineHandler(logging.Handler):
    """Formats records where they are logged and writes the lines in a thread of its own."""

    def __init__(
        self,
        stream: TextIO,
        on_lost: Callable[[], None] = lambda: None,
        clock_us: Callable[[], int] = lambda: monotonic_ns() // 1_000,
    ) -> None:
        """Write to *stream*; call *on_lost* for each line that had to be dropped."""
        super().__init__()
        self._stream = stream
        self._on_lost = on_lost
        self._clock_us = clock_us
        self._quota = Quota.per_minute(LINES_PER_MINUTE_MAX, LINES_BURST)
        self._level: Level | None = None
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES_MAX)
        self._lost = 0
        self._is_closed = False
        self._writer = threading.Thread(target=self._write_lines, name="log writer", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line, or drop it: never waits, never raises. Called under the handler's lock."""
        if not self._admit():
            return self._lose()
        try:
            self._announce_lost()
            self._lines.put_nowait(self.format(record))
        except Exception:  # a full queue, or arguments that do not fit the message
            self._lose()
        return None

    def _admit(self) -> bool:
        taken, level = draw(self._level, self._quota, 1, self._clock_us())
        if level is not None:
            self._level = level
        return bool(taken.admitted)

    def _lose(self) -> None:
        self._lost += 1
        self._on_lost()

    def _announce_lost(self) -> None:
        if self._lost:
            record = logging.LogRecord(
                __name__, logging.WARNING, "", 0, "%d log lines were dropped", (self._lost,), None
            )
            self._lines.put_nowait(self.format(record))
            self._lost = 0

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more, or the stream is closed
                self._on_lost()

    def close(self) -> None:
        """Write what is queued, for at most `CLOSE_TIMEOUT_S`; may be called again."""
        super().close()
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._lines.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:  # the reader has stalled
            return
        self._writer.join(CLOSE_TIMEOUT_S)


def set_up_logging(
    level: str, style: str, stream: TextIO, on_lost: Callable[[], None] = lambda: None
) -> LineHandler:
    """
    Send all logs of the process to *stream*.

    Args:
        level: 'debug', 'info', 'warning' or 'error'.
        style: 'json', 'text', or 'auto' = text for a terminal.
        stream: where to write; usually standard error.
        on_lost: called for each line that had to be dropped.

    Returns:
        The handler; close it at the end of the process.
    """
    handler = LineHandler(stream, on_lost)
    is_text = style == "text" or (style == "auto" and stream.isatty())
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Its everyday lines are not ours.
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, root.level))
    return handler

"""
Logs: one JSON object per line on standard error, or plain text for a terminal, without API keys.

Logging never delays a decision: a thread writes the lines of a bounded queue, so a slow reader loses lines
and adds no latency. Each logger has a budget per level, for lines per minute and for places in the queue, so
that lines caused by clients cannot displace events for operators or errors. Lost lines are counted, and a
line reports their number and kinds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic_ns
from typing import Any, TextIO

from sidecar.domain.bucket import Level, Quota, draw

LINES_PER_MINUTE_MAX = 600
LINES_BURST = 200
"""The budget of one kind: the lines of one logger at one level."""
KINDS_MAX = 64
"""Maximum number of kinds with their own budget; further kinds share one budget per level."""
QUEUE_LINES_MAX = 1_000
QUEUE_LINES_OF_KIND_MAX = LINES_BURST
QUEUE_LINES_FOR_ERRORS = 250
"""Places in the queue that are reserved for errors."""
LOST_INTERVAL_US = 1_000_000
"""Minimum time between two lines that report lost lines."""
LOST_KINDS_SHOWN_MAX = 10
TEXT_CHARS_MAX = 4_096
"""Maximum length of a message, of a field and of a stack trace, of which the end is kept."""
FIELDS_MAX = 20
LIST_ITEMS_MAX = 20
CLOSE_TIMEOUT_S = 2.0

_FIELDS = "event_fields"

# The format of `domain.api_keys`: <prefix>_<credential id>_<secret and checksum>; also truncated keys.
_API_KEY = re.compile(r"\b([0-9A-Za-z-]{1,16}_[0-9A-Za-z-]{1,32})_[0-9A-Za-z]{12,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def log_event(logger: logging.Logger, level: int, message: str, /, **fields: object) -> None:
    """Log *message*, a constant text for this kind of event, with the variable data in *fields*."""
    logger.log(level, message, extra={_FIELDS: fields})


def without_api_keys(text: str) -> str:
    """
    Remove the secret of each API key from *text*; the public credential id stays.

    >>> without_api_keys("got sck_q2R8mW0bTz_" + "x" * 36)
    'got sck_q2R8mW0bTz_[secret]'
    """
    return _API_KEY.sub(r"\1_[secret]", text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`; the length is bounded because all parts are."""
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
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f"  {name}={_shown(value)}" for name, value in _event_fields(record))
        text = record.getMessage()[:TEXT_CHARS_MAX] + fields
        line = f"{time} {record.levelname.lower():<7} {_CONTROL.sub(_escaped, text)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)[-TEXT_CHARS_MAX:]
        return without_api_keys(line)


def _event_fields(record: logging.LogRecord) -> list[tuple[str, object]]:
    fields: dict[str, object] = getattr(record, _FIELDS, {})
    return list(fields.items())[:FIELDS_MAX]


def _bounded(value: object) -> object:
    """Convert *value* to a JSON value of bounded size."""
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


@dataclass(slots=True, eq=False)
class _Kind:
    """The lines of one logger at one level."""

    name: str
    level: Level | None = None  # of the budget's bucket
    queued: int = 0  # changed only by the logging threads
    written: int = 0  # changed only by the writing thread
    lost: int = 0  # lost lines that are not reported yet


class LineHandler(logging.Handler):
    """Formats records in the logging thread and writes the lines in another thread."""

    def __init__(
        self,
        stream: TextIO,
        on_lost: Callable[[], None] = lambda: None,
        clock_us: Callable[[], int] = lambda: monotonic_ns() // 1_000,
    ) -> None:
        """
        Write to *stream*; call *on_lost* for each dropped line.

        `kinds` are the loggers and levels that have logged, at most `KINDS_MAX` and one more for each level.
        """
        super().__init__()
        self._stream = stream
        self._on_lost = on_lost
        self._clock_us = clock_us
        self._quota = Quota.per_minute(LINES_PER_MINUTE_MAX, LINES_BURST)
        self.kinds: dict[tuple[str, int], _Kind] = {}
        self._lines: queue.Queue[tuple[_Kind, str] | None] = queue.Queue(QUEUE_LINES_MAX)
        self._lost_reported_us: int | None = None
        self._is_closed = False
        self._writer = threading.Thread(target=self._write_lines, name="log writer", daemon=True)
        # The thread inherits the mask: a stop signal at the end of the process must find no thread to kill.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._writer.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    @property
    def waiting_lines(self) -> int:
        """Lines that are queued and not written yet."""
        return self._lines.qsize()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line, or drop it; never waits or raises. Called under the handler's lock."""
        kind = self._kind_of(record)
        now_us = self._clock_us()
        if not self._admit(kind, now_us):
            return self._lose(kind)
        with contextlib.suppress(queue.Full):
            self._report_lost(now_us)
        try:
            self._put(kind, record)
        except Exception:  # a full queue, or arguments that do not fit the message
            self._lose(kind)
        return None

    def _kind_of(self, record: logging.LogRecord) -> _Kind:
        key = (record.name, record.levelno)
        kind = self.kinds.get(key)
        if kind is None:
            if len(self.kinds) >= KINDS_MAX:
                key = ("other loggers", record.levelno)
            kind = self.kinds.setdefault(key, _Kind(f"{key[0]} {record.levelname.lower()}"))
        return kind

    def _admit(self, kind: _Kind, now_us: int) -> bool:
        taken, level = draw(kind.level, self._quota, 1, now_us)
        if level is not None:
            kind.level = level
        return bool(taken.admitted)

    def _put(self, kind: _Kind, record: logging.LogRecord) -> None:
        """
        Queue the line of *record*.

        Raises:
            queue.Full: there is no room for a line of this kind.
        """
        kept = 0 if record.levelno >= logging.ERROR else QUEUE_LINES_FOR_ERRORS
        waiting = kind.queued - kind.written
        if waiting >= QUEUE_LINES_OF_KIND_MAX or self.waiting_lines >= QUEUE_LINES_MAX - kept:
            raise queue.Full
        self._lines.put_nowait((kind, self.format(record)))
        kind.queued += 1

    def _lose(self, kind: _Kind) -> None:
        kind.lost += 1
        self._on_lost()

    def _report_lost(self, now_us: int | None) -> None:
        """Queue a line that reports lost lines, at most one per interval; *now_us* None = always."""
        reported_us = self._lost_reported_us
        if now_us is not None and reported_us is not None and now_us < reported_us + LOST_INTERVAL_US:
            return
        losing = sorted((kind for kind in self.kinds.values() if kind.lost), key=lambda kind: -kind.lost)
        if not losing:
            return
        message = "%d log lines were dropped"
        lost = sum(kind.lost for kind in losing)
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, (lost,), None)
        kinds = [f"{kind.name}: {kind.lost}" for kind in losing[:LOST_KINDS_SHOWN_MAX]]
        setattr(record, _FIELDS, {"kinds": kinds})
        self._put(self._kind_of(record), record)
        for kind in losing:
            kind.lost = 0
        self._lost_reported_us = now_us

    def _write_lines(self) -> None:
        while (item := self._lines.get()) is not None:
            kind, line = item
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # the reader has exited, or the stream is closed
                self._on_lost()
            kind.written += 1

    def close(self) -> None:
        """Write the queued lines, for at most `CLOSE_TIMEOUT_S`; may be called again."""
        super().close()
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(queue.Full), self.lock or contextlib.nullcontext():
            self._report_lost(None)
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
        on_lost: called for each dropped line.

    Returns:
        The handler, to close at the end of the process.
    """
    handler = LineHandler(stream, on_lost)
    is_text = style == "text" or (style == "auto" and stream.isatty())
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio logs debug lines about every event loop.
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, root.level))
    return handler

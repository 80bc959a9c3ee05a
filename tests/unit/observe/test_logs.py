"""Logs: what a line holds, what it never holds, and what happens when nobody reads."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from sidecar.domain.api_keys import generate_api_key
from sidecar.observe import logs
from sidecar.observe.logs import (
    FIELDS_MAX,
    KINDS_MAX,
    LINES_BURST,
    LINES_PER_MINUTE_MAX,
    LIST_ITEMS_MAX,
    QUEUE_LINES_FOR_ERRORS,
    QUEUE_LINES_MAX,
    QUEUE_LINES_OF_KIND_MAX,
    TEXT_CHARS_MAX,
    JsonFormatter,
    LineHandler,
    TextFormatter,
    log_event,
    set_up_logging,
    without_api_keys,
)
from tests.building import ManualClock
from tests.unit.cli.terminal import TerminalStream
from tests.waiting import eventually


class Captured(logging.Handler):
    """Keeps the records of one logger."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)


def record_of(
    message: str, /, *arguments: object, error: bool = False, **fields: object
) -> logging.LogRecord:
    """The record that logging *message* makes."""
    logger, captured = logging.Logger("sidecar.test"), Captured()
    logger.addHandler(captured)
    if error:
        try:
            raise RuntimeError("broken " + "x" * 10_000)
        except RuntimeError:
            logger.exception(message, *arguments)
    elif fields:
        log_event(logger, logging.INFO, message, **fields)
    else:
        logger.info(message, *arguments)
    return captured.records[0]


def json_line(record: logging.LogRecord) -> dict[str, Any]:
    """What the line of *record* holds."""
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_json_formatter__one_object_a_line() -> None:
    """Time, level, logger and message, then the fields of the event."""
    record = record_of("serving", grpc=["127.0.0.1:9191"], pid=7, tls=None)
    record.created = 1_764_000_000.25
    assert json_line(record) == {
        "time": "2025-11-24T16:00:00.250000Z",
        "level": "info",
        "logger": "sidecar.test",
        "message": "serving",
        "grpc": ["127.0.0.1:9191"],
        "pid": 7,
        "tls": None,
    }


def test_json_formatter__fields_replace_nothing() -> None:
    """A field called as one of the line's own is left out."""
    assert json_line(record_of("serving", level="x", time="y"))["level"] == "info"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_formatters__a_line_has_a_bound(formatter: logging.Formatter) -> None:
    """However much an event brings: text, fields and lists are cut, and stack traces keep their end."""
    fields: dict[str, object] = {f"field{number}": "x" * 100_000 for number in range(100)}
    line = formatter.format(record_of("x" * 1_000_000, **fields))
    assert len(line) < (FIELDS_MAX + 2) * TEXT_CHARS_MAX
    line = formatter.format(record_of("list", items=["x" * 100_000] * 1_000))
    assert len(line) < (LIST_ITEMS_MAX + 2) * TEXT_CHARS_MAX
    line = formatter.format(record_of("failed", error=True))
    assert len(line) < 2 * TEXT_CHARS_MAX
    assert line.rstrip('"}').endswith("xxx")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_formatters__an_event_is_one_line(formatter: logging.Formatter) -> None:
    """Nobody can forge a line by what a request carries."""
    line = formatter.format(record_of("peer said", words="a\r\n{}\x1b[2J\x00\u2028b"))
    assert not set(line) & set("\r\n\x1b\x00\u2028")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
@pytest.mark.parametrize("prefix", ["sck", "acme-prod"])
def test_formatters__no_api_key_gets_out(formatter: logging.Formatter, prefix: str) -> None:
    """Wherever a key is, whole or cut off, its secret is taken out; the credential id stays."""
    key = generate_api_key(prefix)
    secret = key.api_key.rpartition("_")[2]
    for record in (
        record_of(f"got {key.api_key}"),
        record_of("got %s", key.api_key),
        record_of("got", header=f"Bearer {key.api_key}", seen=[key.api_key, key.api_key[:-7]]),
        record_of("got", url=f"/v1?key={key.api_key}&x=1"),
    ):
        line = formatter.format(record)
        assert secret[:-7] not in line
        assert key.credential_id in line


def test_without_api_keys__leaves_other_text_alone() -> None:
    """Metric names, paths and decision ids are no keys."""
    text = "sidecar_registry_reloads_total /v1/a_b_c 72n0qae56f000000000000 sha256:" + 64 * "0"
    assert without_api_keys(text) == text


def test_text_formatter__for_people() -> None:
    """Time of day, level, message, fields."""
    line = TextFormatter().format(record_of("serving", grpc=["127.0.0.1:9191", "unix:/s"], pid=7))
    assert line[8:] == " info    serving  grpc=127.0.0.1:9191, unix:/s  pid=7"


class Lost:
    """Counts lines that were dropped."""

    def __init__(self) -> None:
        """None yet."""
        self.lines = 0

    def __call__(self) -> None:
        """One more."""
        self.lines += 1


def logger_to(handler: logging.Handler) -> logging.Logger:
    """A separate logger."""
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.Logger("sidecar.test")
    logger.addHandler(handler)
    return logger


def pipe() -> tuple[int, TextIO]:
    """The end to read from, and the end to write to."""
    reading, writing = os.pipe()
    return reading, os.fdopen(writing, "w")


def close(stream: TextIO) -> None:
    """Close the end to write to, whatever is still in its buffer."""
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_line_handler__writes_in_order_and_all_at_the_end() -> None:
    """Closing writes what is queued, and may be done twice."""
    stream = io.StringIO()
    handler = LineHandler(stream)
    logger = logger_to(handler)
    for number in range(100):
        logger.info("%d", number)
    handler.close()
    handler.close()
    assert stream.getvalue().split() == [str(number) for number in range(100)]


def test_line_handler__its_thread_receives_no_signal() -> None:
    """Stop signals that the main thread blocks at its end must not end the process in another thread."""
    before = set(threading.enumerate())
    handler = LineHandler(io.StringIO())
    (writer,) = set(threading.enumerate()) - before
    status = Path(f"/proc/self/task/{writer.native_id}/status").read_text()
    handler.close()
    [mask] = re.findall(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert int(mask, 16) & 1 << signal.SIGTERM - 1


def test_line_handler__a_flood_is_cut_and_reported() -> None:
    """More than a burst of one kind is dropped and counted; the next line that is not says so."""
    clock, lost, stream = ManualClock(), Lost(), io.StringIO()
    handler = LineHandler(stream, lost, clock)
    logger = logger_to(handler)
    for _ in range(LINES_BURST // 2):
        logger.info("x")
    eventually(lambda: stream.getvalue().count("\n") == LINES_BURST // 2)
    for _ in range(LINES_BURST // 2 + 7):
        logger.info("x")
    assert lost.lines == 7
    clock.advance(seconds=60 / LINES_PER_MINUTE_MAX)
    logger.info("later")
    handler.close()
    assert stream.getvalue().splitlines()[-2:] == ["7 log lines were dropped", "later"]


def test_line_handler__tells_of_lost_lines_once_a_second_and_at_the_end() -> None:
    """With their kinds, the largest first; a flood is not doubled by lines about it."""
    clock, stream = ManualClock(), io.StringIO()
    handler = LineHandler(stream, clock_us=clock)
    handler.setFormatter(JsonFormatter())
    noisy, quiet = child_of(handler, "sidecar.noisy"), child_of(handler, "sidecar.quiet")
    for _ in range(LINES_BURST + 50):
        noisy.warning("x")
    for _ in range(LINES_BURST + 2):
        quiet.info("y")
    quiet.error("first")
    for _ in range(30):
        noisy.warning("x")
        quiet.error("z")
    handler.close()
    reported = [entry for entry in entries(stream) if entry["message"].endswith("were dropped")]
    assert [(entry["message"], entry["kinds"]) for entry in reported] == [
        ("50 log lines were dropped", ["sidecar.noisy warning: 50"]),
        ("32 log lines were dropped", ["sidecar.noisy warning: 30", "sidecar.quiet info: 2"]),
    ]


def child_of(handler: logging.Handler, name: str) -> logging.Logger:
    """A logger called *name* that writes to *handler* alone."""
    logger = logging.Logger(name)
    logger.addHandler(handler)
    return logger


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    """The JSON lines in *stream*."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_handler__noise_of_peers_drowns_nothing_else() -> None:
    """However much one logger writes at one level: other levels and loggers have budgets of their own."""
    lost, stream = Lost(), io.StringIO()
    handler = LineHandler(stream, lost, ManualClock())
    noisy, operator = logging.Logger("sidecar.http"), logging.Logger("sidecar.registry")
    for logger in (noisy, operator):
        logger.addHandler(handler)
    for _ in range(10_000):
        noisy.warning("bad request")
    operator.warning("registry refused")
    noisy.error("our own fault")
    noisy.info("as usual")
    assert lost.lines == 10_000 - LINES_BURST
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines.count("bad request") == LINES_BURST
    assert {"registry refused", "our own fault", "as usual"} <= set(lines)


def test_line_handler__kinds_are_bounded() -> None:
    """Names that come from elsewhere use up no memory; those that come late share a budget for each level."""
    handler = LineHandler(io.StringIO(), clock_us=ManualClock())
    for number in range(1_000):
        child_of(handler, f"library.{number}").warning("x")
    child_of(handler, "library.late").error("x")
    assert len(handler.kinds) <= KINDS_MAX + 3
    handler.close()


class BlockedStream(io.StringIO):
    """A stream that takes nothing until it is opened."""

    def __init__(self) -> None:
        """Closed."""
        super().__init__()
        self.opened = threading.Event()

    def write(self, text: str) -> int:
        """Wait."""
        self.opened.wait(60.0)
        return super().write(text)


def test_line_handler__a_reader_that_stalls_costs_noise_before_anything_else() -> None:
    """One kind takes only a part of the queue, and what is left at the end of it is for errors."""
    clock, stream = ManualClock(), BlockedStream()
    handler = LineHandler(stream, clock_us=clock)
    loggers = [child_of(handler, f"sidecar.{number}") for number in range(10)]
    for _ in range(30):  # minutes
        for _ in range(LINES_PER_MINUTE_MAX):
            loggers[0].warning("noise")
        clock.advance(seconds=60)
    loggers[1].info("an operator's event")
    for _ in range(10):
        for logger in loggers[2:]:
            for _ in range(LINES_BURST):
                logger.info("more noise")
        clock.advance(seconds=60)
    assert handler.waiting_lines <= QUEUE_LINES_MAX - QUEUE_LINES_FOR_ERRORS
    loggers[0].error("an error of ours")
    stream.opened.set()
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines.count("noise") <= QUEUE_LINES_OF_KIND_MAX + 1
    assert {"an operator's event", "an error of ours"} <= set(lines)


def test_line_handler__a_reader_that_stalls_holds_nothing_up() -> None:
    """With a full pipe nobody reads, logging goes on at once; lines past the queue's bound are counted."""
    reading, stream = pipe()
    lost = Lost()
    handler = LineHandler(stream, lost)
    line = "x" * 4_096  # a pipe holds 16 of these
    try:
        for number in range(10):
            logger = child_of(handler, f"sidecar.{number}")
            for _ in range(LINES_BURST):
                logger.error(line)
        assert handler.waiting_lines == QUEUE_LINES_MAX
        assert lost.lines > 10 * LINES_BURST - QUEUE_LINES_MAX - 40
    finally:
        os.close(reading)
        handler.close()
        close(stream)


def test_line_handler__survives_a_reader_that_left_and_bad_arguments() -> None:
    """A broken pipe and a message that does not fit its arguments cost that line alone."""
    reading, stream = pipe()
    lost = Lost()
    handler = LineHandler(stream, lost)
    logger = logger_to(handler)
    os.close(reading)
    logger.info("nobody reads")
    eventually(lambda: lost.lines == 1, what="the broken pipe is counted")
    logger.info("%d", "not a number")
    assert lost.lines == 2
    handler.close()
    close(stream)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    asyncio_level = logging.getLogger("asyncio").level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logging.getLogger("asyncio").setLevel(asyncio_level)


@pytest.mark.parametrize(
    ("style", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", TerminalStream(), False),
        ("json", TerminalStream(), True),
        ("text", io.StringIO(), False),
    ],
)
def test_set_up_logging__chooses_the_style(
    root: logging.Logger, style: str, stream: io.StringIO, is_json: bool
) -> None:
    """JSON for machines, text for terminals, unless configured otherwise."""
    handler = set_up_logging("info", style, stream)
    logging.getLogger("sidecar.any").info("hello")
    handler.close()
    assert root.handlers == [handler]
    assert stream.getvalue().startswith("{") == is_json


def test_set_up_logging__keeps_to_the_level(root: logging.Logger) -> None:
    """Less important lines are not written, and those of our libraries only from warnings on."""
    stream = io.StringIO()
    handler = set_up_logging("info", "json", stream)
    logging.getLogger("sidecar.any").debug("no")
    logging.getLogger("asyncio").info("no")
    logging.getLogger("sidecar.any").info("yes")
    logging.getLogger("asyncio").warning("yes")
    handler.close()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["yes", "yes"]


def test_line_handler__closing_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that never reads again does not keep the process from ending."""
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT_S", 0.01)
    may_write = threading.Event()

    class Stuck(io.StringIO):
        written = 0

        def write(self, text: str) -> int:
            may_write.wait(60.0)
            self.written += len(text)
            return len(text)

    stream = Stuck()
    handler = LineHandler(stream)
    logger = logger_to(handler)
    for _ in range(QUEUE_LINES_OF_KIND_MAX):
        logger.info("x")
    handler.close()
    assert stream.written == 0
    may_write.set()

"""JSON lines on standard output: complete, and bounded while nobody reads."""

from __future__ import annotations

import json
import os

from sidecar.process.supervisor.stdout_lines import WAITING_BYTES_MAX, StdoutLines, json_line
from tests.decision_log import decision_row
from tests.waiting import eventually


def test_json_line__leaves_out_what_is_unknown() -> None:
    """Times are UTC with microseconds, numbers are numbers."""
    line = json_line(decision_row(1.5, "id1", path='/"ü', request_id="", remaining=-1))
    fields = json.loads(line)
    assert fields["time"] == "2025-11-24T16:00:01.500000Z"
    assert fields["path"] == '/"ü'
    assert fields["remaining"] == -1
    assert not {"request_id", "reset_at"} & fields.keys()


def test_stdout__writes_lines_and_drops_the_oldest() -> None:
    """A reader that is too slow loses the oldest lines, which are counted; it delays nobody."""
    read_fd, write_fd = os.pipe()
    lines = StdoutLines(write_fd)
    row = decision_row(1, "id1", path="/" + "x" * 1_000)
    count = WAITING_BYTES_MAX // len(json_line(row)) + 1_000
    for _ in range(count):
        lines.add([row])
    assert lines.dropped > 0
    found = b""
    while found.count(b"\n") < count - lines.dropped:
        found += os.read(read_fd, 1 << 20)
    lines.close()
    os.close(write_fd)
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)
    assert set(found.decode().splitlines()) == {json_line(row).rstrip()}


def test_stdout__a_reader_that_has_gone_only_loses_lines() -> None:
    """As `sidecar serve | head` does."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    lines = StdoutLines(write_fd)
    lines.add([decision_row(1, "id1")])
    eventually(lambda: lines.dropped == 1, what="the line is dropped")
    lines.close()
    os.close(write_fd)

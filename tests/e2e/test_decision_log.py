"""The decision log under load: whatever is killed or fails, no decision goes missing unnoticed."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import duckdb
import pytest
from typer.testing import CliRunner

from deploy.demo.sidecar import ReservedPort
from sidecar.cli.root import app
from sidecar.stores.decisions.missing import Cause, MissingSpan, read_missing
from sidecar.stores.decisions.segments import Contents, segments_of
from tests.e2e.stack import Stack, StackKind, upstream_headers
from tests.e2e.workers import DECISIONS, Callers, Supervised, is_gone, make_owner, send_signal
from tests.waiting import eventually

CALLS = 40
ROWS = "sidecar_decision_log_rows_total"
RESTARTS = "sidecar_decision_log_writer_restarts_total"
FAILING = "sidecar_decision_log_failing"
LOST_MAX = 5_000
"""Far above what a kill may take from the few calls of these tests, far below all of them."""


class Found(NamedTuple):
    """What a log holds: the ids of its rows, and its spans of missing rows."""

    ids: list[str]
    missing: list[MissingSpan]

    @property
    def missing_rows(self) -> int:
        """The number of missing rows."""
        return sum(span.allowed + span.refused for span in self.missing)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a Unix socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="sidecar-log-"))
    yield path
    shutil.rmtree(path)


@contextmanager
def recording(folder: Path, is_patient: bool = True) -> Iterator[tuple[Supervised, Callers]]:
    """A supervised sidecar that records, under load."""
    port, owner = ReservedPort(), make_owner()
    address = f"127.0.0.1:{port.number}"
    log = {"path": str(folder / "log"), "name": "box", "flush_interval_s": 0.2}
    supervised = Supervised(folder, address, owner, decision_log=log)
    try:
        with Callers([address], owner, is_patient) as callers:
            callers.await_more(CALLS)
            yield supervised, callers
    finally:
        supervised.stop()
        port.close()


def found(log: Path) -> Found:
    """Read *log*; nothing incomplete may be there."""
    segments = [segment for segment in segments_of(log) if segment.contents is Contents.ROWS]
    assert not list(log.glob(".writing*"))
    files = [str(log / segment.name) for segment in segments]
    query = f"SELECT decision_id FROM read_parquet({files})"  # noqa: S608
    return Found([id for (id,) in duckdb.sql(query).fetchall()], read_missing(log))


def writer_pid(supervised: Supervised) -> int:
    """The process id of the writer that was started last."""
    pid: int = supervised.lines("decision log: writer started")[-1]["pid"]
    return pid


def kill_writer(supervised: Supervised) -> None:
    """kill -9 the writer, and wait for the next one."""
    before = supervised.metric(RESTARTS)
    send_signal(writer_pid(supervised), signal.SIGKILL)
    eventually(lambda: supervised.metric(RESTARTS) == before + 1, what="the writer's end is noticed")
    eventually(lambda: supervised.metric("sidecar_decision_log_writer_running") == 1, what="it runs again")


def test_log__each_decision_is_a_row_or_counted(folder: Path) -> None:
    """Worker and writer are killed at once, then the writer again: rows and missing rows add up."""
    with recording(folder) as (supervised, callers):
        send_signal(supervised.pids()[0], signal.SIGKILL)
        kill_writer(supervised)
        callers.await_more(CALLS)
        kill_writer(supervised)
        eventually(lambda: supervised.status() == "ready", what="a new worker is ready")
        callers.await_more(CALLS)
        callers.end()
        decided = supervised.metric(DECISIONS)
        supervised.stop()
    log = found(folder / "log" / "box")
    assert len(set(log.ids)) == len(log.ids)
    assert len(log.ids) + log.missing_rows == decided
    assert len(log.ids) >= CALLS
    assert log.missing_rows < LOST_MAX
    assert {span.cause for span in log.missing} <= {Cause.WORKER_ENDED, Cause.WRITER_ENDED}
    assert all(span.from_us <= span.to_us for span in log.missing)


def test_log__without_supervisor_the_writer_writes_the_rest(folder: Path) -> None:
    """kill -9 of the supervisor: workers drain, then the writer ends; every answered call has its row."""
    with recording(folder, is_patient=False) as (supervised, callers):
        workers, writer = supervised.pids(), writer_pid(supervised)
        supervised.signal(signal.SIGKILL)
        eventually(lambda: all(map(is_gone, [*workers, writer])), what="workers and writer have ended")
        answered = callers.answered
    log = found(folder / "log" / "box")
    assert len(set(log.ids)) == len(log.ids) >= answered
    assert log.missing == []
    assert '"ended"' in (folder / "log" / "box" / "lock").read_text()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[bool]:
    """Put the log of *folder* on a file system of 1 MiB; False = only root can."""
    path = folder / "log"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path]
    is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    yield is_mounted
    if is_mounted:
        subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def full_disk(path: Path, is_small: bool, writer: int) -> Iterator[None]:
    """Fill the disk of *path*; where it is a large one, forbid the process *writer* to write to files."""
    if is_small:
        filler = path / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4_096))
        yield
        filler.unlink()
    else:
        limits = resource.prlimit(writer, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        yield
        resource.prlimit(writer, resource.RLIMIT_FSIZE, limits)


def test_log__a_full_disk_stops_no_decision(folder: Path, small_disk: bool) -> None:
    """Calls are answered while rows wait; with room again all of them are written, by themselves."""
    with recording(folder) as (supervised, callers):
        with full_disk(folder / "log", small_disk, writer_pid(supervised)):
            eventually(lambda: supervised.metric(FAILING) == 1, what="the writer says that it fails")
            callers.await_more(CALLS)
        eventually(lambda: supervised.metric(FAILING) == 0, what="the writer writes again")
        callers.end()
        decided = supervised.metric(DECISIONS)
        supervised.stop()
        assert callers.faults == []
    assert len(supervised.lines("decision log: written again")) >= 1
    log = found(folder / "log" / "box")
    assert len(set(log.ids)) == len(log.ids)
    assert len(log.ids) + log.missing_rows == decided


def test_log__a_simulation_of_the_same_record_repeats_it(folder: Path) -> None:
    """What real workers decided is decided again; a lower limit refuses what it must."""
    with recording(folder) as (supervised, callers):
        callers.end()
        supervised.stop()
    command = ["simulate", "--config", str(supervised.config), "--integration", "caller", "--json"]
    runs = [
        CliRunner().invoke(app, [*command, *change])
        for change in ((), ("--set", "limit=1", "--set", "burst=1"))
    ]
    same, limited = (json.loads(run.stdout) for run in runs)
    assert same["is_complete"]
    assert (same["rows"] >= CALLS, same["rows_kept"], same["changes"]) == (True, 0, [])
    assert [change["becomes"] for change in limited["changes"]] == ["rate_limited"]
    assert 0 < limited["newly_refused"] < limited["rows"] == same["rows"]


@pytest.mark.parametrize(("proxy", "dialect"), [("envoy", "ext_authz"), ("nginx", "forward_auth")])
def test_log__requests_through_a_real_proxy(proxy: str, dialect: str) -> None:
    """Each has its row with the ids that the client and the API received, without query and key."""
    traceparent = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    log = {"path": "log", "name": "box", "stdout": "json"}
    with closing(Stack(StackKind(proxy, settings=(("decision_log", log),)))) as stack:
        people = stack.people
        allowed = stack.get("/v1/inventory/42?token=secret", people.reader, [traceparent])
        received = upstream_headers(allowed)
        refused = stack.get("/v1/inventory/7", people.financier)
        unknown = stack.send("POST", "/v1/orders", people.stranger)
        stack.sidecar.stop()
        [segment] = segments_of(stack.folder / "log" / "box")
        columns = (
            "decision_id, trace_id, integration, credential, verdict, reason, method, path, scope,"
            " client_address, route, remaining > 0, limit_rpm, reset_at > store_time, retry_after_us, dialect"
        )
        path = stack.folder / "log" / "box" / segment.name
        query = f"SELECT {columns}, request_id FROM '{path}' ORDER BY time"  # noqa: S608
        rows = duckdb.sql(query).fetchall()
        text = path.read_bytes()
        printed = stack.sidecar.printed()
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"time"')]
    assert {line["decision_id"] for line in lines if "verdict" in line} == {row[0] for row in rows}
    trace_id = traceparent[1].split("-")[1]
    reader, financier = people.reader.key.credential_id, people.financier.key.credential_id
    route, scope = "/v1/inventory/**", "inventory:read"
    assert [row[:-1] for row in rows] == [
        (
            received["x-decision-id"][0], trace_id, "reader", reader, "ALLOW", "ok", "GET",
            "/v1/inventory/42", scope, "127.0.0.1", route, True, 10_000, True, 0, dialect,
        ),
        (
            refused.one("x-decision-id"), "", "financier", financier, "DENY_403", "scope_missing", "GET",
            "/v1/inventory/7", scope, "127.0.0.1", route, True, 10_000, False, 0, dialect,
        ),
        (
            unknown.one("x-decision-id"), "", "", "", "DENY_403", "unknown_credential", "POST", "/v1/orders",
            "", "127.0.0.1", "", False, 0, False, 0, dialect,
        ),
    ]  # fmt: skip
    assert rows[0][-1] == received.get("x-request-id", [rows[0][-1]])[0] != ""
    assert b"secret" not in text and people.reader.key.api_key.encode() not in text

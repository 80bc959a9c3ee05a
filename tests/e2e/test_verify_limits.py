"""`sidecar verify-limits` with real sidecars on real stores: right fleets pass, wrong ones are found out."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.domain.api_keys import generate_api_key
from sidecar.verify.accuracy import Finding, Terms
from sidecar.verify.callers import Call, Caller
from sidecar.verify.run import AccuracyRun, Load, Outcome, RunResult, VerificationPlan, prove
from sidecar.verify.sidecars import Fleet, SidecarsError, child_environment
from sidecar.verify.store_clock import StoreClock
from sidecar.verify.subjects import ROUTES, Subject, SubjectError, make_subjects
from tests.e2e.workers import is_gone
from tests.redis_servers import shared
from tests.waiting import eventually, run

PATIENCE_S = 90.0
LIMIT_RPM, BURST = 3_000, 50
SECONDS = 1.2


def plan(store: str, sidecars: int, **changes: object) -> VerificationPlan:
    """A short run."""
    given = {"load": Load(SECONDS, connections=1), "buckets": 4, **changes}
    return VerificationPlan(store=store, limit_rpm=LIMIT_RPM, burst=BURST, sidecars=sidecars, **given)  # type: ignore[arg-type]


def store_of(kind: str) -> str:
    """A shared store, under a prefix of this test; 'guarded' admits anyone who may do what sidecars need."""
    url = getattr(shared(), kind).url
    if kind == "guarded":
        url = url.replace("://", "://limited:correct@")
    return f"{url}?prefix=sidecar:{secrets.token_hex(4)}:"


def verify_limits(*arguments: str) -> tuple[int, str, str]:
    """Run the command; its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar.cli", "verify-limits", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout, done.stderr


def assert_kept(outcome: Outcome) -> None:
    """Every bucket kept the promise, and was seen to be empty before and after."""
    assert outcome.run.findings() == []
    assert outcome.run.is_fulfilled
    for bucket in outcome.run.buckets:
        assert bucket.judgment.least is not None
        assert bucket.judgment.least >= BURST
        assert bucket.count.refused > 0


@pytest.mark.parametrize(("kind", "sidecars"), [("guarded", 1), ("cluster", 4)])
def test_fleet__admits_what_the_limit_says(kind: str, sidecars: int) -> None:
    """Sidecars on one store, a single server or a Cluster, keep each limit; `make verify-limits` runs 8."""
    outcome = run(prove(plan(store_of(kind), sidecars)), PATIENCE_S)
    assert_kept(outcome)


def test_fleet__keeps_the_limit_while_sidecars_are_killed() -> None:
    """A sidecar that dies by kill -9 under load gives nothing back; one that starts again gets no more."""
    load = Load(1.5, connections=1)
    outcome = run(prove(plan(store_of("standalone"), 2, kill_every_s=0.2, load=load)), PATIENCE_S)
    assert outcome.kills >= 1
    assert_kept(outcome)


def test_command__finds_out_sidecars_that_share_nothing() -> None:
    """Two sidecars with buckets of their own admit twice as much: broken, exit code 1."""
    code, printed, _ = verify_limits(
        *("--store", "embedded:", "--sidecars", "2", "--buckets", "2", "--duration", "1s", "--json")
    )
    reported = json.loads(printed)
    assert (code, reported["verdict"]) == (1, "broken")
    assert {bucket["finding"] for bucket in reported["buckets"]} == {"over-admitted"}
    assert all(bucket["admitted"] > bucket["at_most"] for bucket in reported["buckets"])


@asynccontextmanager
async def given_sidecars(folder: Path, store: str, count: int) -> AsyncIterator[tuple[Fleet, str, Subject]]:
    """Sidecars that somebody else runs, with the key of one of their integrations."""
    registry = folder / "registry.yaml"
    key = generate_api_key()
    [subject] = make_subjects(registry, {"acme": Terms(LIMIT_RPM, BURST, BURST)}, keys=[key])
    settings = {"registry": str(registry), "routes": ROUTES}
    async with Fleet(folder, count, settings, child_environment(store)) as fleet:
        yield fleet, key.api_key, subject


class Rival:
    """Somebody else who uses the integration; implements `callers.Listener`."""

    def __init__(self, subject: Subject) -> None:
        """Ask as *subject*."""
        self._call = Call(subject.message, 0)

    def next_call(self, caller: int) -> Call:
        """Always the same."""
        return self._call

    def ended(self, caller: int, tag: int, message: bytes, sent_ns: int) -> None:
        """Whatever the answer is."""


def test_targets__that_run_already(tmp_path: Path) -> None:
    """Sidecars that run are proven by the keys they know, from what their buckets hold."""

    async def scenario() -> Outcome:
        store = store_of("standalone")
        async with given_sidecars(tmp_path, store, 2) as (fleet, key, _):
            return await prove(plan(store, 1, targets=tuple(fleet.targets), api_keys=(key,)))

    assert_kept(run(scenario(), PATIENCE_S))


def test_run__that_does_not_empty_the_bucket_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that is too large for the load is reported, in bounded time: no verdict of either kind."""
    monkeypatch.setattr("sidecar.verify.run.EMPTY_TIMEOUT_S", 0.1)
    large = plan("embedded:", 1, buckets=1, load=Load(0.5))
    outcome = run(prove(replace(large, burst=1_000_000)), PATIENCE_S)
    assert outcome.run.findings() == [Finding.NOT_SATURATED]
    assert not outcome.run.is_fulfilled


def test_run__that_admits_too_little_is_found_out(tmp_path: Path) -> None:
    """Where somebody takes most of what flows in, the rest is less than the limit says: under-admitted."""

    async def scenario() -> RunResult:
        async with given_sidecars(tmp_path, "embedded:", 1) as (fleet, _, subject):
            clock = StoreClock(None)
            began = await clock.now()
            rival = Caller(0, fleet.targets[0], Rival(subject), depth=48)
            rival.start()
            try:
                return await AccuracyRun(fleet.targets, [subject], clock, Load(SECONDS, 1)).run(began)
            finally:
                await rival.stop()

    result = run(scenario(), PATIENCE_S)
    assert result.findings() == [Finding.UNDER_ADMITTED]
    assert not result.is_fulfilled


async def test_targets__with_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    """A wrong limit or key is reported before anything is judged by it."""
    stranger = generate_api_key().api_key

    async with given_sidecars(tmp_path, "embedded:", 1) as (fleet, key, _):
        given = VerificationPlan(
            "", Load(SECONDS), LIMIT_RPM, BURST, targets=tuple(fleet.targets), api_keys=(key,)
        )
        with pytest.raises(SubjectError, match=f"is {LIMIT_RPM} per minute, not {LIMIT_RPM + 1}"):
            await prove(replace(given, limit_rpm=LIMIT_RPM + 1))
        with pytest.raises(SubjectError, match="403 unknown_credential"):
            await prove(replace(given, api_keys=(key, stranger)))


def _begun(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A long run with its temporary files in *folder*, and the processes of its one sidecar."""
    command = subprocess.Popen(
        [sys.executable, "-m", "sidecar.cli", "verify-limits", "--store", "embedded:", "--sidecars", "1",
         "--duration", "10m"],
        env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return command, eventually(lambda: _serving(command.pid), what="its sidecar has been started")


def test_command__ends_its_sidecars_when_it_is_reported_to_stop(tmp_path: Path) -> None:
    """SIGTERM in the middle of a run: no sidecar and no folder is left, and nothing is claimed."""
    command, children = _begun(tmp_path)
    command.send_signal(signal.SIGTERM)
    printed, complaint = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, printed) == (1, "")
    assert "interrupted" in complaint
    eventually(lambda: all(map(is_gone, children)), what="its sidecar has ended")
    assert list(tmp_path.iterdir()) == []


def test_command__that_is_killed_leaves_no_sidecar(tmp_path: Path) -> None:
    """After kill -9 of the command the kernel ends its sidecars."""
    command, children = _begun(tmp_path)
    command.kill()
    command.communicate(timeout=PATIENCE_S)
    eventually(lambda: all(map(is_gone, children)), what="its sidecar has ended")


def _serving(pid: int) -> list[int]:
    """The children of *pid*, once they run their own program."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    return children if all(b"serve" in command for command in commands) else []


def test_sidecars__one_that_does_not_start_is_reported_with_what_it_printed(tmp_path: Path) -> None:
    """The reason is in the error."""

    async def scenario() -> None:
        async with Fleet(tmp_path, 1, {"registry": "missing.yaml"}, child_environment("embedded:")):
            raise AssertionError("it started")

    with pytest.raises(SidecarsError, match=r"missing\.yaml"):
        asyncio.run(scenario())


def test_command__prints_a_table_and_leaves_nothing() -> None:
    """Owners see each bucket and one word at the end; every key of the run has a time to live."""
    store = store_of("standalone")
    code, printed, _ = verify_limits(
        "--store", store, "--sidecars", "1", "--buckets", "2", "--duration", "1s"
    )
    assert code == 0
    assert printed.rstrip().endswith("fulfilled")
    assert "1 sidecar on redis://" in printed
    assert "prefix" not in printed
    client = shared().standalone.client
    keys = client.keys(f"{store.partition('prefix=')[2]}*")
    assert [key for key in keys if client.pttl(key) == -1] == []  # -1 = stays for ever, -2 = gone

"""`sidecar verify-limits`: what it refuses, and what it says of a run."""

from __future__ import annotations

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sidecar.cli.root import app
from sidecar.stores.redis.urls import parse_store_url
from sidecar.verify import report
from sidecar.verify.accuracy import Count, Terms, Window, judge
from sidecar.verify.run import BucketResult, Load, Outcome, RunResult, VerificationPlan
from sidecar.verify.subjects import Subject, masked_store, own_prefix

TERMS = Terms(600, 10, 10)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "pass --store URL"),
        (("--target", "127.0.0.1:1"), "add --key"),
        (("--target", "127.0.0.1:1", "--key", "k", "--kill-worker-every", "1s"), "leave --target out"),
        (("--store", "memcached://x"), "memcached"),
        (("--store", "redis://127.0.0.1:1?password_env=NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE"),
    ],
)
def test_command__refuses_what_does_not_go_together(arguments: tuple[str, ...], complaint: str) -> None:
    """Wrong usage is reported before anything is started, with exit code 2."""
    done = CliRunner(env={"SIDECAR_STORE": None, "SIDECAR_API_KEY": None}).invoke(
        app, ["verify-limits", *arguments]
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_command__answers_to_its_former_name() -> None:
    """For one release `sidecar conformance` does the same, and says what to write."""
    done = CliRunner(env={"SIDECAR_STORE": None, "SIDECAR_API_KEY": None}).invoke(app, ["conformance"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "sidecar verify-limits" in done.stderr and "pass --store URL" in done.stderr


def outcome(*counts: Count, hung: int = 0, **given: object) -> Outcome:
    """A run of two seconds with these counts."""
    plan = VerificationPlan("redis://sid:secret@127.0.0.1/1", Load(2.0), 600, 10, sidecars=3, **given)  # type: ignore[arg-type]
    window = Window(2_000_000, 1_900_000)
    buckets = [
        BucketResult(Subject(f"b{number}", TERMS, b""), window, count, judge(TERMS, window, count))
        for number, count in enumerate(counts)
    ]
    return Outcome(plan, RunResult(tuple(buckets), 2.0, hung), kills=1)


def text_of(reported: Outcome) -> str:
    """The table as a person reads it."""
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(report.as_table(reported))
    return captured.get()


@pytest.mark.parametrize(
    ("reported", "last"),
    [
        (outcome(Count(admitted=30, refused=9)), "fulfilled"),
        (
            outcome(Count(admitted=30), Count(admitted=31), Count(admitted=3)),
            "broken: over-admitted, under-admitted",
        ),
        (outcome(Count(admitted=30, other={401: 2})), "broken: misanswered"),
        (outcome(Count(admitted=30), hung=3), "broken"),
    ],
    ids=["fulfilled", "both", "misanswered", "hung"],
)
def test_report__ends_with_the_verdict(reported: Outcome, last: str) -> None:
    """One word, and what is wrong; JSON says the same, and neither holds a password."""
    text, machine = text_of(reported), report.as_json(reported)
    assert text.rstrip().splitlines()[-1] == last
    assert machine["verdict"] == last.partition(":")[0]
    assert "secret" not in text + str(machine)
    assert "3 sidecars on redis://127.0.0.1:6379/1, 1 killed and started again" in " ".join(text.split())


def test_report__tells_hung_calls_and_every_figure() -> None:
    """What was measured is in the table, also at 80 columns, and in JSON."""
    reported = outcome(Count(admitted=29, refused=7, failed=1, unanswered=2), hung=4)
    row = next(line.split() for line in text_of(reported).splitlines() if line.strip().startswith("1 "))
    assert row == ["1", "2.000", "30", "29", "29", "96.67", "%", "7", "3", "fulfilled"]
    assert "4 calls got no answer in time" in text_of(reported)
    [bucket] = report.as_json(reported)["buckets"]
    assert (bucket["admitted"], bucket["at_most"], bucket["at_least"]) == (29, 30, 29)
    assert (bucket["failed"], bucket["unanswered"], bucket["other"]) == (1, 2, {})


def test_prefix__is_below_that_of_the_fleet() -> None:
    """Keys of a run never meet those of the fleet, and an ACL for its prefix covers them."""
    ours = parse_store_url(own_prefix("redis://sid:s%40e@127.0.0.1/2?prefix=edge:&partitions=4"))
    other = parse_store_url(own_prefix("redis://127.0.0.1"))
    assert ours.prefix.startswith("edge:verify-limits-")
    assert other.prefix.startswith("sidecar:verify-limits-")
    assert ours.prefix != other.prefix
    assert (ours.partitions, ours.database, ours.login.password) == (4, 2, "s@e")


@pytest.mark.parametrize(
    ("store", "masked"), [("", ""), ("embedded:", "embedded:"), ("redis://a:b@h", "redis://h:6379")]
)
def test_store__is_reported_without_its_password(store: str, masked: str) -> None:
    """What people and programs read holds no secret."""
    assert masked_store(store) == masked

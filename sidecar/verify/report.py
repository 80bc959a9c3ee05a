"""Prints a run's outcome as a table or as JSON."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sidecar.verify.run import BucketResult, Outcome
from sidecar.verify.subjects import masked_store

US_PER_S = 1_000_000


def as_json(outcome: Outcome) -> dict[str, Any]:
    """
    The measurements as a JSON object.

    `at_most` is B + L·T/60 with T from before the first request until after the last answer; `at_least` is
    the least that a bucket must admit, null = it was not seen empty twice.
    """
    run = outcome.run
    return {
        "verdict": verdict(outcome),
        "store": masked_store(outcome.plan.store),
        "sidecars": sidecar_count(outcome),
        "kills": outcome.kills,
        "seconds": round(run.seconds, 3),
        "calls": run.calls,
        "calls_per_s": round(run.calls / run.seconds),
        "hung": run.hung,
        "buckets": [_bucket(bucket) for bucket in run.buckets],
    }


def verdict(outcome: Outcome) -> str:
    """'fulfilled' or 'broken'."""
    return "fulfilled" if outcome.run.is_fulfilled else "broken"


def sidecar_count(outcome: Outcome) -> int:
    """The number of sidecars in the run."""
    return len(outcome.plan.targets) or outcome.plan.sidecars


def as_table(outcome: Outcome) -> Group:
    """The measurements as a table."""
    run, plan = outcome.run, outcome.plan
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        title=f"{plan.limit_rpm} a minute, burst {plan.burst}",
        title_justify="left",
    )
    for name in ("bucket", "seconds", "at most", "at least", "admitted", "share", "refused", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("finding", no_wrap=True)
    for number, bucket in enumerate(run.buckets, 1):
        table.add_row(str(number), *_cells(bucket))
    killed = f", {outcome.kills} killed and started again" if outcome.kills else ""
    hung = f"; {run.hung:,} calls got no answer in time" if run.hung else ""
    return Group(
        table,
        Text(
            f"{_counted(sidecar_count(outcome), 'sidecar')} on {masked_store(plan.store) or 'their store'}"
            f"{killed};"
            f" {run.calls:,} requests in {run.seconds:.1f} s, {run.calls / run.seconds:,.0f} a second{hung}"
        ),
        Text(f"{verdict(outcome)}{_why(outcome)}", style="bold green" if run.is_fulfilled else "bold red"),
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _why(outcome: Outcome) -> str:
    findings = [finding.value for finding in outcome.run.findings()]
    return f": {', '.join(findings)}" if findings else ""


def _cells(bucket: BucketResult) -> tuple[str, ...]:
    count, judgment = bucket.count, bucket.judgment
    return (
        f"{bucket.window.outer_us / US_PER_S:.3f}",
        f"{judgment.most:,}",
        "-" if judgment.least is None else f"{judgment.least:,}",
        f"{count.admitted:,}",
        f"{bucket.admitted_percent:.2f} %",
        f"{count.refused:,}",
        f"{count.unknown:,}",
        judgment.finding.value,
    )


def _bucket(bucket: BucketResult) -> dict[str, Any]:
    count, judgment, terms = bucket.count, bucket.judgment, bucket.subject.terms
    return {
        "integration": bucket.subject.integration_id,
        "limit_rpm": terms.limit_rpm,
        "burst": terms.burst,
        "seconds": bucket.window.outer_us / US_PER_S,
        "at_most": judgment.most,
        "at_least": judgment.least,
        "admitted": count.admitted,
        "admitted_percent": round(bucket.admitted_percent, 3),
        "refused": count.refused,
        "failed": count.failed,
        "unanswered": count.unanswered,
        "other": {str(status): number for status, number in sorted(count.other.items())},
        "finding": judgment.finding.value,
    }

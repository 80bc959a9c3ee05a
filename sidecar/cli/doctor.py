"""`sidecar doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from sidecar.cli.exits import EXIT_OK, EXIT_REFUSED
from sidecar.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from sidecar.process.doctor import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def doctor(config: ConfigOption = None, json: JsonOption = False) -> None:
    """
    Examine a sidecar, running or not: what is wrong, and what to do about it.

    Checks the configuration, the modes of files, the addresses, the store (reachable, version, eviction
    policy, writes, clock), the registry, a running sidecar with its workers, the dates of certificates,
    and the decision log: its folder, and rows that a running sidecar could not write.
    Writes one key to a shared store, which expires after a second. Exits with 1 if a check failed; warnings
    do not count.
    """
    from sidecar.process.doctor import State, examine

    if json:
        findings = list(examine(config))
        _print_json(findings)
    else:
        findings = list(_printed(examine(config)))
    has_failed = any(finding.state is State.FAILED for finding in findings)
    raise typer.Exit(EXIT_REFUSED if has_failed else EXIT_OK)


def _print_json(findings: Iterable[Finding]) -> None:
    import json

    checks = [finding._asdict() | {"state": finding.state.value} for finding in findings]
    is_healthy = all(check["state"] != "failed" for check in checks)
    typer.echo(json.dumps({"is_healthy": is_healthy, "checks": checks}, indent=2))


def _printed(findings: Iterable[Finding]) -> Iterable[Finding]:
    """Print each of *findings* as soon as it is made."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for finding in findings:
        word = finding.state.value
        console.print(Text.assemble((f"{word:<8}", _STYLES[word]), f" {finding.name}: {finding.finding}"))
        if finding.remedy:
            console.print(Text(f"         -> {finding.remedy}"))
        yield finding

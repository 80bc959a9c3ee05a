"""`sidecar decide`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from sidecar.cli import options as o
from sidecar.cli.exits import EXIT_DENIED, EXIT_OK, EXIT_USAGE, CommandError, report_errors

if TYPE_CHECKING:
    from rich.console import Console

    from sidecar.domain.answers import Answer, Decision
    from sidecar.domain.policy import AccessRequest
    from sidecar.services.explain import ExplainedStep

_MARKS = {
    "passed": "[green]passed[/green]",
    "failed": "[red]failed[/red]",
    "in shadow": "[yellow]in shadow[/yellow]",
    "not reached": "[dim]-[/dim]",
}


def decide(
    method: o.MethodArgument,
    path: o.PathArgument,
    config: o.ConfigOption = None,
    key: o.KeyOption = None,
    ip: o.IpOption = None,
    peer: o.PeerOption = "",
    scope: o.ScopeOption = "",
    header: o.HeaderOption = None,
    json: o.JsonOption = False,
) -> None:
    """
    Decide one request offline, against a full bucket, and explain each step.

    Exits with 0 when the request is allowed and with 3 when it is denied.
    """
    with report_errors():
        from sidecar.domain.answers import answer_to
        from sidecar.observe.metrics import Metrics
        from sidecar.observe.table import TABLE
        from sidecar.process.config import load_config
        from sidecar.process.wiring import LoadedConfig
        from sidecar.services.explain import explain

        loaded = LoadedConfig(load_config(config))
        if not loaded.registry.snapshot.is_loaded:
            raise CommandError(
                "'decide' works offline and cannot read a registry that administrators change: ask a running"
                " sidecar with 'sidecar ask', or decide from a file of 'sidecar registry pull' with"
                " SIDECAR_STORE=embedded: SIDECAR_REGISTRY=FILE"
            )
        source = loaded.rules.policy.sources.sources[0]
        headers = o.request_headers(header, key, source.header, source.scheme)
        request = _request(method, path, headers, scope, ip, peer)
        decision = loaded.decider(Metrics(TABLE)).decide(request, None, _never_late, None)
        assert decision is not None  # the embedded store answers at once
        steps = explain(request, decision, loaded.rules.policy.routes)
        answer = answer_to(decision, loaded.rules.style)
    if json:
        _print_json(steps, answer)
    else:
        _print(steps, answer)
    raise typer.Exit(EXIT_OK if decision.reason.verdict.value == "ALLOW" else EXIT_DENIED)


def _request(
    method: str, path: str, headers: dict[str, str], scope: str, ip: str | None, peer: str
) -> AccessRequest:
    from sidecar.domain.cidr import AddressError, parse_client_address
    from sidecar.domain.client_address import PeerAddress
    from sidecar.domain.policy import AccessRequest

    o.check_addresses(ip, peer)
    for address in (ip, peer or None):
        try:
            _ = address is None or parse_client_address(address)
        except AddressError as error:
            raise CommandError(str(error), EXIT_USAGE) from None
    if peer:
        return AccessRequest(method, path, headers.get, peer, scope or None)
    return AccessRequest(method, path, headers.get, ip or "", scope or None, address_rule=PeerAddress("--ip"))


def _never_late(decision: Decision, context: None) -> None:
    raise AssertionError("the embedded store answers at once")


def _print_json(steps: list[ExplainedStep], answer: Answer) -> None:
    import json

    from sidecar.services.explain import as_plain_data

    typer.echo(json.dumps(as_plain_data(steps, answer), indent=2))


def _print(steps: list[ExplainedStep], answer: Answer) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    colour = "green" if answer.status == 200 else "red"
    decision = answer.decision
    verdict, reason = decision.reason.verdict.value, decision.reason.label
    console.print(f"[bold {colour}]{verdict}[/] {reason}  [dim]{decision.id}[/]\n")
    print_steps(console, steps)
    console.print(
        f"\nHTTP {answer.status}" if answer.status != 200 else "\nPassed to the upstream", style="bold"
    )
    _print_headers(console, "to the client", answer.client_headers)
    _print_headers(console, "to the upstream", answer.upstream_headers)
    for name in answer.removed_headers:
        console.print(f"  {escape(name)}  [dim]removed before the upstream[/dim]")
    if answer.body:
        console.print_json(answer.body.decode())


def print_steps(console: Console, steps: Iterable[tuple[str, str, str]]) -> None:
    """Print the name, outcome and detail of each step."""
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for number, (name, outcome, detail) in enumerate(steps, 1):
        table.add_row(str(number), name, _MARKS[outcome], escape(detail))
    console.print(table)


def _print_headers(console: Console, whom: str, headers: list[tuple[str, str]]) -> None:
    from rich.markup import escape

    for name, value in headers:
        console.print(f"  {escape(name)}: {escape(value)}  [dim]{whom}[/dim]")

"""The options of commands that read the decision log, and their query."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.cli.times import moment_ago
from sidecar.domain.decisions import Verdict

_FILTERS = "Filters"
Filters = dict[str, str | int | bool | None]


def _option(name: str, metavar: str, help: str) -> object:
    return typer.Option(name, metavar=metavar, rich_help_panel=_FILTERS, help=help)


SinceOption = Annotated[
    str, _option("--since", "WHEN", "Decisions from this time on: 2026-12-01T00:00Z, or 2h = two hours ago.")
]
UntilOption = Annotated[str, _option("--until", "WHEN", "Decisions before this time.")]


LogOption = Annotated[
    Path | None,
    typer.Option(
        "--log",
        metavar="DIR",
        help="Read the files in this folder, without a server and a token. Default: ask the server.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class DecisionFilterOptions:
    """The filters of decisions, which apply together."""

    integration: Annotated[str, _option("--integration", "ID", "Of this integration.")] = ""
    credential: Annotated[str, _option("--credential", "ID", "With this API key, by its id.")] = ""
    verdict: Annotated[
        Verdict | None,
        typer.Option("--verdict", case_sensitive=False, rich_help_panel=_FILTERS, help="With this answer."),
    ] = None
    reason: Annotated[str, _option("--reason", "REASON", "With this reason, such as rate_limited.")] = ""
    would_deny: Annotated[
        str, _option("--would-deny", "REASON", "That shadow mode allowed in spite of this reason.")
    ] = ""
    address: Annotated[
        str, _option("--address", "CIDR", "From this address or block, such as 192.0.2.0/24.")
    ] = ""
    scope: Annotated[str, _option("--scope", "SCOPE", "That need this scope, such as orders:read.")] = ""
    method: Annotated[str, _option("--method", "METHOD", "With this method, such as GET.")] = ""
    path: Annotated[str, _option("--path", "PREFIX", "Whose path begins with this text.")] = ""
    request_id: Annotated[str, _option("--request-id", "ID", "With this x-request-id of the proxy.")] = ""
    since: SinceOption = ""
    until: UntilOption = ""

    def query(self) -> Filters:
        """
        Return the API's query.

        Raises:
            CommandError: a time is invalid.
        """
        return {
            "integration": self.integration,
            "credential": self.credential,
            "verdict": self.verdict.value if self.verdict is not None else None,
            "reason": self.reason,
            "would_deny": self.would_deny,
            "address": self.address,
            "scope": self.scope,
            "method": self.method,
            "path_prefix": self.path,
            "request_id": self.request_id,
            **span_query(self.since, self.until),
        }


def span_query(since: str, until: str) -> Filters:
    """
    Return the API's query for a span of time; a duration counts back from now.

    Raises:
        CommandError: a time is invalid, or the span is empty.
    """
    begin = moment_ago("--since", since) if since else None
    end = moment_ago("--until", until) if until else None
    if begin and end and datetime.fromisoformat(begin) >= datetime.fromisoformat(end):
        raise CommandError(f"--since {since} is not before --until {until}", EXIT_USAGE)
    return {"since": begin, "until": end}

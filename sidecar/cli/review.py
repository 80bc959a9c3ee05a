"""`sidecar review`: the quarterly access review, as a table, as CSV to decide in, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Invocation, command
from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.cli.integrations import LIST_MAX, LimitOption, SearchOption, StatusOption
from sidecar.cli.tables import Column, print_csv
from sidecar.cli.times import shown
from sidecar.cli.views import print_listing

PAGE_MAX = 50
OPERATIONAL = "operational"
COLUMNS = (Column("integration"), Column("owner"), Column("last used"), Column("to decide"))
RECORD_TEXTS = ("name", "status", "suspended_since", "owner", "contact", "third_party_manager")
CSV_HEADS = (
    "as_of", "integration", *RECORD_TEXTS, "scopes",
    "sensitive_scopes", "unused_scopes", "scopes_last_used", "allowlist", "ip_allowlist",
    "rate_limit_rpm", "raised_to_rpm", "raised_until", "credential", "state", "issued_at", "age_days",
    "expires_at", "last_used_at", "last_used_address", "flags", "reviewer", "decision", "decided_on",
)  # fmt: skip
"""One line per credential; the reviewer fills in the last three columns."""


def add_to(app: typer.Typer) -> None:
    """Register the command on *app*."""

    @command(app, "review", panel=ADMINISTRATION)
    def review(
        call: Invocation,
        csv: Annotated[
            bool,
            typer.Option(
                "--csv", help="Print one line per credential, with empty columns for reviewer and decision."
            ),
        ] = False,
        flagged: Annotated[
            bool, typer.Option("--flagged", help="Only integrations that need a decision.")
        ] = False,
        search: SearchOption = "",
        status: StatusOption = None,
        limit: LimitOption = LIST_MAX,
    ) -> None:
        """
        Review access: every integration with its API keys, their age and last use, and what needs a decision.

        The CSV is for a reviewer who does not grant access; keep the completed file.
        """
        if csv and call.is_json:
            raise CommandError("--csv and --json cannot be used together", EXIT_USAGE)
        query = {"search": search, "status": status.value if status is not None else None}
        listing = call.client.listed("/v1/review", query, limit, page_max=PAGE_MAX)
        if listing.rest["scope_uses_problem"]:
            typer.echo(
                f"note: the uses of scopes are not known: {listing.rest['scope_uses_problem']}", err=True
            )
        if flagged:
            listing = listing._replace(items=[item for item in listing.items if item["flags"]])
        if csv:
            print_csv(
                CSV_HEADS, (row for item in listing.items for row in _csv_rows(item, listing.rest["as_of"]))
            )
            if listing.next_after is not None:
                raise CommandError(f"there are more than {limit} integrations: raise --limit")
        else:
            print_listing(call, listing, COLUMNS, map(_row, listing.items), "there is nothing to review")


def _row(record: dict[str, Any]) -> tuple[object, ...]:
    """The cells of an integration: what to decide as sentences on a terminal, as codes when piped."""
    used = max((key["last_used_at"] or "" for key in record["credentials"]), default="")
    word = "message" if sys.stdout.isatty() else "code"
    return (
        record["id"],
        record["owner"] or "-",
        shown(used, "never"),
        [flag[word] for flag in record["flags"]],
    )


def _csv_rows(record: dict[str, Any], as_of: str) -> Iterator[tuple[object, ...]]:
    raised = record["limit_raise"] or {}
    sensitive = [scope["scope"] for scope in record["scopes"] if scope["sensitivity"] != OPERATIONAL]
    last_used = [
        f"{scope['scope']}={scope['last_used_at']}" for scope in record["scopes"] if scope["last_used_at"]
    ]
    is_unused_known = any(flag["code"] == "scope_unused" for flag in record["flags"])
    unused = [scope["scope"] for scope in record["scopes"] if is_unused_known and not scope["last_used_at"]]
    shared = (
        as_of, record["id"], *(record[name] for name in RECORD_TEXTS),
        [scope["scope"] for scope in record["scopes"]],
        sensitive, unused, last_used,
        "on" if record["is_allowlist_enabled"] and record["ip_allowlist"] else "off", record["ip_allowlist"],
        record["rate_limit_rpm"], raised.get("rate_limit_rpm"), raised.get("until"),
    )  # fmt: skip
    general_flags = [flag["code"] for flag in record["flags"] if flag["credential_id"] is None]
    for key in record["credentials"] or [dict.fromkeys(_KEY_FIELDS)]:
        flags = [flag["code"] for flag in record["flags"] if key["id"] and flag["credential_id"] == key["id"]]
        yield (*shared, *(key[name] for name in _KEY_FIELDS), [*general_flags, *flags], "", "", "")


_KEY_FIELDS = (
    "id", "state", "issued_at", "age_days", "expires_at", "last_used_at", "last_used_address"
)  # fmt: skip

"""`sidecar review`: the quarterly access review, as a table, as CSV to decide in, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from sidecar.cli.admin_command import ADMINISTRATION, Invocation, command
from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.cli.integrations import LIST_MAX, LimitOption, Status
from sidecar.cli.tables import Column, print_csv
from sidecar.cli.times import shown
from sidecar.cli.views import print_listing

PAGE_MAX = 50
OPERATIONAL = "operational"
COLUMNS = (Column("integration"), Column("owner"), Column("last used"), Column("to decide"))
CSV_HEADS = (
    "as_of", "integration", "name", "status", "suspended_since", "owner", "contact", "third_party_manager",
    "scopes", "sensitive_scopes", "allowlist", "ip_allowlist", "rate_limit_rpm", "raised_to_rpm",
    "raised_until", "credential", "state", "issued_at", "age_days", "expires_at", "last_used_at",
    "last_used_address", "flags", "reviewer", "decision", "decided_on",
)  # fmt: skip
"""One line a credential; the last three are empty, for whoever decides."""


def add_to(app: typer.Typer) -> None:
    """Register the command on *app*."""

    @command(app, "review", panel=ADMINISTRATION)
    def review(
        call: Invocation,
        csv: Annotated[
            bool,
            typer.Option(
                "--csv", help="One line a credential, with empty columns for reviewer and decision."
            ),
        ] = False,
        flagged: Annotated[
            bool, typer.Option("--flagged", help="Only integrations that need a decision.")
        ] = False,
        search: Annotated[
            str, typer.Option("--search", metavar="TEXT", help="Only those with this in one of their texts.")
        ] = "",
        status: Annotated[Status | None, typer.Option("--status", help="Only those that are so.")] = None,
        limit: LimitOption = LIST_MAX,
    ) -> None:
        """
        Review who may do what: every integration with its keys, their age and last use, and what to decide.

        The CSV is meant to be filled in by somebody else than those who give access, and to be kept.
        """
        if csv and call.is_json:
            raise CommandError("--csv and --json exclude each other", EXIT_USAGE)
        query = {"search": search, "status": status.value if status is not None else None}
        listing = call.client.listed("/v1/review", query, limit, page_max=PAGE_MAX)
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


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    """What to decide, in sentences for people, by its codes for programs."""
    used = max((key["last_used_at"] or "" for key in one["credentials"]), default="")
    word = "message" if sys.stdout.isatty() else "code"
    return one["id"], one["owner"] or "-", shown(used, "never"), [flag[word] for flag in one["flags"]]


def _csv_rows(one: dict[str, Any], as_of: str) -> Iterator[tuple[object, ...]]:
    raised = one["limit_raise"] or {}
    sensitive = [each["scope"] for each in one["scopes"] if each["sensitivity"] != OPERATIONAL]
    shared = (
        as_of, one["id"], one["name"], one["status"], one["suspended_since"], one["owner"], one["contact"],
        one["third_party_manager"], [each["scope"] for each in one["scopes"]], sensitive,
        "on" if one["is_allowlist_enabled"] and one["ip_allowlist"] else "off", one["ip_allowlist"],
        one["rate_limit_rpm"], raised.get("rate_limit_rpm"), raised.get("until"),
    )  # fmt: skip
    of_all = [flag["code"] for flag in one["flags"] if flag["credential_id"] is None]
    for key in one["credentials"] or [dict.fromkeys(_KEY_FIELDS)]:
        flags = [flag["code"] for flag in one["flags"] if key["id"] and flag["credential_id"] == key["id"]]
        yield (*shared, *(key[name] for name in _KEY_FIELDS), [*of_all, *flags], "", "", "")


_KEY_FIELDS = (
    "id", "state", "issued_at", "age_days", "expires_at", "last_used_at", "last_used_address"
)  # fmt: skip

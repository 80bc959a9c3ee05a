"""Prints integrations, credentials and accounts as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from sidecar.cli.tables import Column, print_fields, print_table
from sidecar.cli.times import shown
from sidecar.domain.integrations import DETAILS

if TYPE_CHECKING:
    from sidecar.admin_client.client import Listing
    from sidecar.cli.admin_command import Invocation

Record = dict[str, Any]

INTEGRATIONS = (
    Column("id"),
    Column("name"),
    Column("status"),
    Column("limit/min", is_number=True),
    Column("keys", is_number=True),
    Column("scopes", is_number=True),
    Column("allowlist"),
)
CREDENTIALS = (
    Column("credential", is_whole=True),
    Column("state", is_whole=True),
    Column("issued"),
    Column("expires"),
    Column("last used"),
    Column("from"),
)
ADMINISTRATORS = (
    Column("id"),
    Column("name"),
    Column("role"),
    Column("token", is_whole=True),
    Column("expires"),
    Column("last used"),
    Column("from"),
)
REFUSED_CALLERS = (
    Column("refused"),
    Column("address"),
    Column("credential", is_whole=True),
    Column("entries"),
    Column("now"),
)
LIVE = ("active", "overlapping")


def print_listing(
    call: Invocation,
    listing: Listing,
    columns: Sequence[Column],
    rows: Iterable[Sequence[object]],
    empty: str,
    more: str = "",
) -> None:
    """
    Print a list as JSON or as a table, with a note on standard error if there are more items.

    *more* is the text of that note, '' = the usual one.
    """
    if call.is_json:
        call.print_json({"items": listing.items, "next_after": listing.next_after, **listing.rest})
    else:
        print_table(columns, rows, empty)
    if listing.next_after is not None:
        usual = f"more than {len(listing.items)} match; narrow the search, or raise --limit"
        typer.echo(f"note: {more or usual}", err=True)


def print_integrations(call: Invocation, listing: Listing) -> None:
    """Print one integration per line."""
    rows = [
        (
            item["id"],
            item["name"],
            item["status"],
            item["effective_limit_rpm"],
            sum(key["state"] in LIVE for key in item["credentials"]),
            len(item["scopes"]),
            _allowlist(item),
        )
        for item in listing.items
    ]
    print_listing(call, listing, INTEGRATIONS, rows, "no matching integrations")


def print_integration(record: Record) -> None:
    """Print one integration, then its credentials."""
    fields: list[tuple[str, object]] = [
        ("id", record["id"]),
        ("name", record["name"]),
        ("status", record["status"]),
    ]
    fields += [
        (f"suspended by {suspension['by']}", _suspension(suspension)) for suspension in record["suspensions"]
    ]
    if record.get("single_person_at"):
        fields.append(("reactivated", f"{shown(record['single_person_at'])}, possibly by a single person"))
    fields += [
        *((text.label, record[name]) for name, text in DETAILS.items()),
        ("scopes", record["scopes"] or "none"),
        *limit_fields(record),
        ("allowlist", record["ip_allowlist"] or "no entry"),
        ("allowlist is", _allowlist(record)),
        ("in shadow", record["shadow"] or "nothing"),
        ("on store error", record.get("on_store_error") or "as configured"),
        ("webhook secrets", [webhook_secret["id"] for webhook_secret in record["webhook_secrets"]] or "none"),
        ("created", shown(record["created_at"])),
        ("changed", shown(record["changed_at"])),
        ("generation", record["generation"]),
    ]
    print_fields(fields)
    typer.echo()
    print_credentials(record["credentials"], "no credential")
    if record.get("refused_callers"):
        typer.echo()
        print_refused_callers(record["refused_callers"], "")


def limit_of(record: Record) -> Record:
    """The fields of an integration that describe its limit."""
    names = ("rate_limit_rpm", "burst", "limit_raise", "effective_limit_rpm", "shadow")
    return {name: record[name] for name in names}


def limit_fields(record: Record) -> list[tuple[str, object]]:
    """The limit in force, the permanent limit, and a temporary raise if there is one."""
    burst = record["burst"] if record["burst"] is not None else record["rate_limit_rpm"]
    fields: list[tuple[str, object]] = [("limit per minute", record["effective_limit_rpm"])]
    raised = record["limit_raise"]
    if raised is None:
        return [*fields, ("burst", burst)]
    raised_burst = raised["burst"] if raised["burst"] is not None else raised["rate_limit_rpm"]
    return [
        *fields,
        ("burst", raised_burst),
        ("raised until", shown(raised["until"])),
        ("then", f"{record['rate_limit_rpm']} per minute, burst {burst}"),
    ]


def print_credentials(credentials: Sequence[Record], empty: str) -> None:
    """Print credentials, in the order in which they were issued."""
    rows = [
        (
            credential["id"],
            credential["state"],
            shown(credential["issued_at"]),
            _end(credential),
            shown(credential.get("last_used_at"), "never"),
            credential.get("last_used_address") or "-",
        )
        for credential in credentials
    ]
    print_table(CREDENTIALS, rows, empty)


def print_administrators(accounts: Sequence[Record]) -> None:
    """Print one token per line, and accounts without a token, because the audit log names them."""
    rows = [
        (
            account["id"],
            account["name"],
            _role(account),
            token.get("id", "-"),
            shown(token.get("expires_at")),
            shown(token.get("last_used_at"), "never" if token else "-"),
            token.get("last_used_from") or "-",
        )
        for account in accounts
        for token in account["tokens"] or [{}]
    ]
    print_table(ADMINISTRATORS, rows, "no administrators")


def print_refused_callers(callers: Sequence[Record], empty: str, *, err: bool = False) -> None:
    """Print the callers that an allowlist refused, latest first, with the entry that would admit each."""
    rows = [
        (
            shown(caller["refused_at"]),
            caller["address"] or "unknown: check 'client_ip'",
            caller["credential_id"],
            [entry for entry in (caller["entry"], caller["network"]) if entry] or "-",
            ["admitted" if caller["is_admitted_now"] else "refused", *_refusals(caller)],
        )
        for caller in callers
    ]
    print_table(REFUSED_CALLERS, rows, empty, err=err)


def _refusals(caller: Record) -> list[str]:
    """How often the decision log has a caller; [] = the caller is not from the log."""
    counts = (("refusals", caller.get("refusals")), ("in shadow", caller.get("shadow_refusals")))
    return [f"{name}: {count}" for name, count in counts if count]


def _role(account: Record) -> str:
    """The role of an account, marked if it was recovered."""
    role = "removed" if account["removed_at"] is not None else account["role"]
    return f"{role}, recovered" if account.get("is_recovered") else role


def _allowlist(record: Record) -> str:
    count = len(record["ip_allowlist"])
    if not record["is_allowlist_enabled"] or not count:
        return f"off ({count})" if count else "off"
    return f"shadow ({count})" if "allowlist" in record["shadow"] else f"on ({count})"


def _suspension(suspension: Record) -> str:
    return f"{shown(suspension['at'])}: {suspension['reason']}"


def _end(credential: Record) -> str:
    end = shown(credential["expires_at"], "never")
    return f"{end}, then {credential['replaced_by']}" if credential["replaced_by"] else end

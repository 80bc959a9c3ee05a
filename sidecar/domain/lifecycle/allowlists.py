"""Rules of the IP allowlist: validates entries, and warns of lock-outs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from sidecar.domain.cidr import (
    Address,
    Cidr,
    CidrError,
    describe_embedded,
    describe_overlaps,
    embedded_ipv4,
    format_address,
    parse_cidr,
)
from sidecar.domain.enforcement import Rule
from sidecar.domain.integrations import ALLOWLIST_ENTRIES_MAX, Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import CommandContext, Draft, Notice
from sidecar.domain.lifecycle.shadow import with_shadow
from sidecar.domain.refusals import Code, Problem, raise_for, refusal

ENTRIES_MAX = 1_000
"""Maximum number of entries in a command that are checked."""
NAMED_MAX = 5
"""Maximum number of addresses that a lock-out warning names."""


def set_entries(record: Integration, command: c.SetAllowlist, context: CommandContext) -> Draft:
    """Replace all entries."""
    entries, notices = check_entries("entries", command.entries)
    if not entries and record.is_allowlist_enabled and record.ip_allowlist:
        raise _would_be_empty()
    return _draft(record, entries, notices, context, f"set the allowlist to {_count(entries)}")


def add_entries(record: Integration, command: c.AddAllowlistEntries, context: CommandContext) -> Draft:
    """Add the entries that are not in the list."""
    asked, notices = check_entries("entries", command.entries)
    known = [f"{entry} is already in the allowlist" for entry in asked if entry in record.ip_allowlist]
    notices += tuple(Notice("entry_known", "entries", message) for message in known)
    added = [entry for entry in asked if entry not in record.ip_allowlist]
    entries = (*record.ip_allowlist, *added)
    _require_room("entries", entries)
    notices += tuple(_overlap_notices("entries", entries, only=added))
    summary = f"added {_listed(added)} to the allowlist"
    return _draft(record, entries, tuple(dict.fromkeys(notices)), context, summary)


def remove_entries(record: Integration, command: c.RemoveAllowlistEntries, context: CommandContext) -> Draft:
    """Remove entries; each must be in the list."""
    asked, _ = check_entries("entries", command.entries)
    raise_for([_unknown_entry(record, entry) for entry in asked if entry not in record.ip_allowlist])
    entries = tuple(entry for entry in record.ip_allowlist if entry not in asked)
    if not entries and record.ip_allowlist and record.is_allowlist_enabled:
        raise _would_be_empty()
    return _draft(record, entries, (), context, f"removed {_listed(asked)} from the allowlist")


def enable(record: Integration, command: c.EnableAllowlist, context: CommandContext) -> Draft:
    """Turn the allowlist on."""
    if not record.ip_allowlist:
        raise refusal(
            Code.ALLOWLIST_EMPTY,
            "",
            f"the allowlist of {record.id!r} has no entries; turned on, it would refuse every address",
            "add at least one entry first",
        )
    enabled = with_shadow(replace(record, is_allowlist_enabled=True), Rule.ALLOWLIST, command.in_shadow)
    said = "turned the allowlist on"
    if Rule.ALLOWLIST in enabled.shadow:
        said += ", in shadow"
    return _draft(enabled, record.ip_allowlist, (), context, said)


def disable(record: Integration, command: c.DisableAllowlist, context: CommandContext) -> Draft:
    """Turn the allowlist off; the entries are kept."""
    return Draft(replace(record, is_allowlist_enabled=False), "turned the allowlist off")


def check_entries(field: str, texts: Sequence[str]) -> tuple[tuple[Cidr, ...], tuple[Notice, ...]]:
    """
    Parse entries; notices name duplicates, entries without effect, and entries that are too wide.

    Raises:
        InvalidError: entries that are not CIDR blocks, each with its index and a suggestion; or too many
            entries, with the number left after merging.
    """
    if len(texts) > ENTRIES_MAX:
        raise _too_many(field, len(texts), "")
    problems: list[Problem] = []
    entries: dict[Cidr, str] = {}
    notices: list[Notice] = []
    for index, text in enumerate(texts):
        where = f"{field}[{index}]"
        try:
            entry = parse_cidr(text)
        except CidrError as error:
            remedy = "write 'address/length', for example 192.0.2.0/24, or one address"
            problems.append(Problem(Code.INVALID_VALUE, where, str(error), remedy))
            continue
        if entry in entries:
            message = f"{text[:64]!a} is the same as {entries[entry][:64]!a}, and is stored once"
            notices.append(Notice("duplicate", where, message))
        entries.setdefault(entry, text)
    raise_for(problems)
    kept = tuple(entries)
    _require_room(field, kept)
    return kept, (*notices, *_overlap_notices(field, kept, only=kept), *_breadth_notices(field, kept))


def locked_out(entries: Iterable[Cidr], seen: Iterable[Address]) -> tuple[Address, ...]:
    """Return the addresses of *seen* that no entry admits."""
    blocks = tuple(entries)
    return tuple(address for address in seen if not any(block.contains(address) for block in blocks))


def _draft(
    record: Integration,
    entries: tuple[Cidr, ...],
    notices: tuple[Notice, ...],
    context: CommandContext,
    summary: str,
) -> Draft:
    if record.is_allowlist_enabled and entries:
        notices += _lock_out_notice(record, entries, context.facts.addresses_seen)
    return Draft(replace(record, ip_allowlist=entries), summary, notices)


def _lock_out_notice(
    record: Integration, entries: tuple[Cidr, ...], seen: tuple[Address, ...]
) -> tuple[Notice, ...]:
    outside = locked_out(entries, seen)
    if not outside:
        return ()
    named = ", ".join(format_address(address) for address in outside[:NAMED_MAX])
    more = f" and {len(outside) - NAMED_MAX} more" if len(outside) > NAMED_MAX else ""
    is_shadowed = Rule.ALLOWLIST in record.shadow
    effect = "would be refused if it was not in shadow" if is_shadowed else "are refused"
    message = (
        f"{len(outside)} of the {len(seen)} addresses seen in the last hour are outside the allowlist and"
        f" {effect}: {named}{more}; add entries for them, or turn the allowlist off"
    )
    if not {len(address) for address in outside} <= {len(entry.network) for entry in entries}:
        message += "; IPv4 clients need IPv4 entries, and IPv6 clients IPv6 ones"
    return (Notice("lock_out", "entries", message),)


def _overlap_notices(field: str, entries: Sequence[Cidr], only: Sequence[Cidr]) -> list[Notice]:
    """Return notices about entries without effect that involve *only*."""
    return [
        Notice("overlap", field, f"{overlap}: it has no effect")
        for overlap in describe_overlaps(entries)
        if overlap.entry in only or overlap.within in only
    ]


def _breadth_notices(field: str, entries: Sequence[Cidr]) -> list[Notice]:
    families = {4: "IPv4", 16: "IPv6"}
    notices = [
        Notice(
            "admits_all",
            field,
            f"{entry} admits every {families[len(entry.network)]} client; leave it out, or turn the"
            " allowlist off if that is intended",
        )
        for entry in entries
        if entry.length_bits == 0
    ]
    notices += [
        Notice("embedded_ipv4", field, f"{entry} {describe_embedded(ipv4)}")
        for entry in entries
        if (ipv4 := embedded_ipv4(entry)) is not None
    ]
    if len({len(entry.network) for entry in entries}) == 2:
        message = (
            "the list has IPv4 and IPv6 entries; a client is checked against the family that it connects"
            " with, so a client with both needs an entry in each"
        )
        notices.append(Notice("mixed_families", field, message))
    return notices


def _require_room(field: str, entries: Sequence[Cidr]) -> None:
    if len(entries) > ALLOWLIST_ENTRIES_MAX:
        merged = _merged_count(entries)
        hint = f"; merging adjacent and covered entries leaves {merged}" if merged < len(entries) else ""
        raise _too_many(field, len(entries), hint)


def _too_many(field: str, count: int, hint: str) -> Exception:
    return refusal(
        Code.TOO_MANY,
        field,
        f"{count} entries given; an allowlist holds at most {ALLOWLIST_ENTRIES_MAX}{hint}",
        "merge adjacent networks, or remove entries that others cover",
    )


def _merged_count(entries: Sequence[Cidr]) -> int:
    networks = [ip_network(str(entry)) for entry in entries]
    ipv4 = [network for network in networks if isinstance(network, IPv4Network)]
    ipv6 = [network for network in networks if isinstance(network, IPv6Network)]
    return len(list(collapse_addresses(ipv4))) + len(list(collapse_addresses(ipv6)))


def _would_be_empty() -> Exception:
    return refusal(
        Code.ALLOWLIST_EMPTY,
        "entries",
        "without entries the allowlist would be off and admit every address",
        "keep at least one entry, or turn the allowlist off first if that is intended",
    )


def _unknown_entry(record: Integration, entry: Cidr) -> Problem:
    covering = [str(other) for other in record.ip_allowlist if other.covers(entry)]
    hint = f"; it is covered by {', '.join(covering)}" if covering else ""
    return Problem(
        Code.ENTRY_UNKNOWN,
        "entries",
        f"{entry} is not an entry of the allowlist of {record.id!r}{hint}",
        "write entries as in the list",
    )


def _listed(entries: Sequence[Cidr]) -> str:
    return ", ".join(map(str, entries[:NAMED_MAX])) + (
        f" and {len(entries) - NAMED_MAX} more" if len(entries) > NAMED_MAX else ""
    )


def _count(entries: Sequence[Cidr]) -> str:
    return "1 entry" if len(entries) == 1 else f"{len(entries)} entries"

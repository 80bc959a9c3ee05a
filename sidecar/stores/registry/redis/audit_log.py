"""Reading pages of the audit log by index and by time."""

from __future__ import annotations

from typing import Any

from sidecar.domain.audit import AuditEntry, AuditFormatError, StoredEntry, parse_entry
from sidecar.stores.registry.base import bad_cursor, require_limit
from sidecar.stores.registry.protocol import AuditPage, AuditQuery
from sidecar.stores.registry.redis.reads import Reader
from sidecar.stores.registry.redis.replies import entry_of, sequence_of

_CURSOR_DIGITS_MAX = 16
_LAST = 2**53
_CHUNK = 200
_FILTERS = ("subject", "actor", "action")
"""Ordered by selectivity: the index of the first filter is read, the other filters are compared."""


async def audit_page(reader: Reader, query: AuditQuery) -> AuditPage:
    """
    One page of the log.

    Raises:
        InvalidError: the limit or the cursor is invalid.
    """
    require_limit(query.limit)
    after = query.after
    if after and not (after.isascii() and after.isdecimal() and len(after) <= _CURSOR_DIGITS_MAX):
        raise bad_cursor()
    if not 0 <= query.chain < reader.keys.partitions:
        return AuditPage((), "")
    first, last = await _time_bounds(reader, query)
    if after and query.newest_first:
        last = min(last, int(after) - 1)
    elif after:
        first = max(first, int(after) + 1)
    entries: list[StoredEntry] = []
    while first <= last and len(entries) <= query.limit:
        some = await _some(reader, query, first, last)
        if not some:
            break
        entries += [entry for entry in some if _matches(entry, query)]
        if query.newest_first:
            last = some[-1].sequence - 1
        else:
            first = some[-1].sequence + 1
    page = tuple(entries[: query.limit])
    return AuditPage(page, str(page[-1].sequence) if len(entries) > query.limit else "")


async def _some(reader: Reader, query: AuditQuery, first: int, last: int) -> list[StoredEntry]:
    """The next entries between two sequences, in the requested order; by the index of a filter, if any."""
    count = min(_CHUNK, query.limit + 1)
    ends = (last, first) if query.newest_first else (first, last)
    log = reader.keys.named(query.chain, "audit")
    filtered = next((name for name in _FILTERS if getattr(query, name)), None)
    if filtered is None:
        verb = "XREVRANGE" if query.newest_first else "XRANGE"
        [reply] = await reader.ask(query.chain, (verb, log, *(f"{end}-0" for end in ends), "COUNT", count))
        return [entry_of(query.chain, entry) for entry in reply]
    verb = "ZREVRANGEBYSCORE" if query.newest_first else "ZRANGEBYSCORE"
    index = reader.keys.index(query.chain, filtered, getattr(query, filtered))
    [sequences] = await reader.ask(query.chain, (verb, index, *ends, "LIMIT", 0, count))
    replies = await reader.ask(
        query.chain, *(("XRANGE", log, sequence + b"-0", sequence + b"-0") for sequence in sequences)
    )
    return [entry_of(query.chain, entry) for reply in replies for entry in reply]


def _matches(stored: StoredEntry, query: AuditQuery) -> bool:
    """Whether the entry matches all filters."""
    wanted = [name for name in _FILTERS if getattr(query, name)]
    if not wanted:
        return True
    try:
        entry: AuditEntry = parse_entry(stored.body)
    except AuditFormatError:
        return False  # a verification reports the unreadable entry
    return all(getattr(entry, name) == getattr(query, name) for name in wanted)


async def _time_bounds(reader: Reader, query: AuditQuery) -> tuple[int, int]:
    """The first and the last sequence in the query's time range."""
    first, last = 1, _LAST
    if query.since_us > 0:
        first = await _first_at(reader, query.chain, query.since_us)
    if query.until_us < AuditQuery().until_us:
        last = await _first_at(reader, query.chain, query.until_us) - 1
    return first, last


async def _first_at(reader: Reader, chain: int, at_us: int) -> int:
    """The sequence of the first entry at or after *at_us*, by binary search in O(log n) round trips."""
    log = reader.keys.named(chain, "audit")
    [newest] = await reader.ask(chain, ("XREVRANGE", log, "+", "-", "COUNT", 1))
    if not newest:
        return 1
    low, high = 1, sequence_of(newest[0][0]) + 1
    while low < high:
        middle = (low + high) // 2
        [found] = await reader.ask(chain, ("XRANGE", log, f"{middle}-0", "+", "COUNT", 1))
        if found and _time_of(found[0]) < at_us:
            low = max(middle, sequence_of(found[0][0])) + 1
        else:
            high = middle
    return low


def _time_of(entry: Any) -> int:
    return int(entry[1][3])

"""Merging the chains of a registry's audit log, ordered by time and then by chain."""

from __future__ import annotations

import asyncio
import heapq
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from sidecar.domain.audit import AuditFormatError, StoredEntry, parse_entry
from sidecar.stores.registry.base import bad_cursor, require_limit
from sidecar.stores.registry.protocol import AuditPage, AuditQuery, Registry

PIECE_MIN = 8
"""Minimum number of entries of each chain that are read at a time."""
_CURSOR = re.compile(r"([0-9]{1,16}):([0-9]{1,3}):([0-9]{1,16})")


class _Place(NamedTuple):
    """The position of an entry in the merged log; an unreadable entry has the `at_us` of its neighbor."""

    at_us: int
    chain: int
    sequence: int


async def merged_page(registry: Registry, chains: Sequence[int], query: AuditQuery) -> AuditPage:
    """
    One page of the merged *chains*; the `chain` of *query* is ignored.

    Raises:
        RefusedError: the limit or the cursor is invalid.
    """
    require_limit(query.limit)
    entries: list[StoredEntry] = []
    last: _Place | None = None
    async for place, entry in _merged(registry, chains, query):
        if len(entries) == query.limit:
            assert last is not None
            return AuditPage(tuple(entries), "{}:{}:{}".format(*last))
        entries.append(entry)
        last = place
    return AuditPage(tuple(entries), "")


async def merged_entries(
    registry: Registry, chains: Sequence[int], query: AuditQuery
) -> AsyncIterator[StoredEntry]:
    """Yield every entry of the merged *chains* that matches *query*; raises as `merged_page`."""
    async for _, entry in _merged(registry, chains, query):
        yield entry


async def _merged(
    registry: Registry, chains: Sequence[int], query: AuditQuery
) -> AsyncIterator[tuple[_Place, StoredEntry]]:
    after = _cursor(query.after)
    piece = max(PIECE_MIN, query.limit // len(chains)) if len(chains) > 1 else query.limit
    queries = (replace(_rest_of(query, chain, after), limit=piece) for chain in chains)
    readers = [_entries(registry, rest) for rest in queries]
    sign = -1 if query.newest_first else 1
    heap: list[tuple[list[int], int, tuple[_Place, StoredEntry]]] = []
    firsts = await asyncio.gather(*(anext(reader, None) for reader in readers))
    for index, first in enumerate(firsts):
        if first is not None:
            heap.append(([sign * part for part in first[0]], index, first))
    heapq.heapify(heap)
    while heap:
        _, index, found = heap[0]
        yield found
        following = await anext(readers[index], None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, ([sign * part for part in following[0]], index, following))


async def _entries(registry: Registry, query: AuditQuery) -> AsyncIterator[tuple[_Place, StoredEntry]]:
    """Yield the entries of one chain, read page by page; their times never decrease."""
    at_us = query.until_us if query.newest_first else query.since_us
    while True:
        page = await registry.audit(query)
        for entry in page.entries:
            with suppress(AuditFormatError):  # a verification reports the unreadable entry
                at_us = parse_entry(entry.body).at_us
            yield _Place(at_us, entry.chain, entry.sequence), entry
        if not page.next_after:
            return
        query = replace(query, after=page.next_after)


def _cursor(text: str) -> _Place | None:
    if not text:
        return None
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise bad_cursor()
    return _Place(*map(int, match.groups()))


def _rest_of(query: AuditQuery, chain: int, after: _Place | None) -> AuditQuery:
    """The query for the rest of *chain* after the merged position *after*."""
    rest = replace(query, chain=chain, after="")
    if after is None:
        return rest
    if chain == after.chain:
        return replace(rest, after=str(after.sequence))
    if query.newest_first:
        return replace(rest, until_us=min(query.until_us, after.at_us + (chain < after.chain)))
    return replace(rest, since_us=max(query.since_us, after.at_us + (chain < after.chain)))

"""
Reading the registry in Redis.

The head of a chain is always read before the records: the records are at least as new, so a returned revision
is never newer than the returned records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sidecar.domain.accounts import Administrator
from sidecar.domain.audit import ChainHead
from sidecar.domain.changes import Revision
from sidecar.domain.cidr import Address
from sidecar.domain.integrations import INTEGRATION_ID, Integration
from sidecar.domain.lifecycle.commands import SealedSecret
from sidecar.domain.lifecycle.outcome import ADDRESSES_SEEN_MAX
from sidecar.stores.registry.base import FoundRecord, bad_cursor, require_limit
from sidecar.stores.registry.protocol import (
    SEEN_WINDOW_US,
    IntegrationPage,
    LastUse,
    ListQuery,
    RegistryDamagedError,
    RegistryView,
    lost_record,
)
from sidecar.stores.registry.redis.keys import HOME, RegistryKeys
from sidecar.stores.registry.redis.nodes import Command, Nodes
from sidecar.stores.registry.redis.replies import RECORD_FIELDS, found_record, head_of, last_use_of
from sidecar.stores.registry.results import account_of

RECORDS_PER_TURN = 10
"""Records that are parsed per turn of the event loop: less than a millisecond."""
_CHUNK = 500
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reader:
    """Sends the commands of one call; `deadline_s` is on the monotonic clock."""

    nodes: Nodes
    keys: RegistryKeys
    deadline_s: float

    async def ask(self, partition: int, *commands: Command) -> list[Any]:
        """Run *commands*, which may be repeated, in *partition*; return the replies."""
        return await self.nodes.run(partition, commands, self.deadline_s)


def head_command(keys: RegistryKeys, partition: int) -> Command:
    """The command that reads the head of a chain."""
    return ("XREVRANGE", keys.named(partition, "audit"), "+", "-", "COUNT", 1)


def record_command(keys: RegistryKeys, integration_id: str) -> Command:
    """The command that reads a record."""
    return ("HMGET", keys.of(integration_id, "r"), *RECORD_FIELDS)


async def all_of(*works: Awaitable[Result]) -> list[Result]:
    """
    The results of all *works*.

    Waits for all of them even if one fails, so that none outlives the caller; then raises the first
    exception.
    """
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    results: list[Result] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


async def heads(reader: Reader) -> tuple[ChainHead, ...]:
    """The head of every chain."""
    replies = await all_of(
        *(
            reader.ask(partition, head_command(reader.keys, partition))
            for partition in range(reader.keys.partitions)
        )
    )
    return tuple(head_of(partition, reply) for partition, [reply] in enumerate(replies))


async def record(reader: Reader, integration_id: str) -> FoundRecord | None:
    """The record with this id, also of a deleted integration."""
    if not INTEGRATION_ID.fullmatch(integration_id):
        return None
    partition = reader.keys.partition_of(integration_id)
    [reply] = await reader.ask(partition, record_command(reader.keys, integration_id))
    return found_record(reply)


async def latest_record(reader: Reader, integration_id: str) -> tuple[FoundRecord | None, ChainHead]:
    """
    The record with this id, and a head of its chain that includes it.

    Raises:
        RegistryDamagedError: its generation key is missing, so that takes would never be admitted.
    """
    keys = reader.keys
    partition = keys.partition_of(integration_id)
    reply, generation, head = await reader.ask(
        partition,
        record_command(keys, integration_id),
        ("GET", keys.of(integration_id, "g")),
        head_command(keys, partition),
    )
    found = found_record(reply)
    if found is not None and generation is None:
        raise RegistryDamagedError(lost_record(integration_id))
    return found, head_of(partition, head)


async def records(reader: Reader, partition: int, ids: Sequence[str]) -> list[FoundRecord | None]:
    """The records of integrations of one partition, parsed over several turns of the event loop."""
    replies = await reader.ask(partition, *(record_command(reader.keys, id) for id in ids))
    found: list[FoundRecord | None] = []
    for reply in replies:
        found.append(found_record(reply))
        if len(found) % RECORDS_PER_TURN == 0:
            await asyncio.sleep(0)
    return found


async def load_all(reader: Reader) -> tuple[RegistryView, tuple[ChainHead, ...]]:
    """All integrations, and the heads that were read before them."""
    before = await heads(reader)
    parts = await all_of(*(_load(reader, partition) for partition in range(reader.keys.partitions)))
    loaded = sorted((record for records, _ in parts for record in records), key=lambda record: record.id)
    lost = tuple(sorted(id for _, ids in parts for id in ids))
    return RegistryView(Revision(tuple(head.sequence for head in before)), tuple(loaded), lost), before


async def _load(reader: Reader, partition: int) -> tuple[list[Integration], list[str]]:
    """The integrations of a partition, and the ids of those whose records are missing."""
    loaded: list[Integration] = []
    lost: list[str] = []
    after = ""
    while ids := await _ids(reader, partition, after, _CHUNK):
        found = await records(reader, partition, ids)
        loaded += [each.record for each in found if each is not None and not each.is_deleted]
        lost += [id for id, each in zip(ids, found, strict=True) if each is None]
        after = ids[-1]
    return loaded, lost


async def _ids(reader: Reader, partition: int, after: str, count: int) -> list[str]:
    """Up to *count* sorted ids after *after*."""
    lowest = f"({after}" if after else "-"
    ids = reader.keys.named(partition, "ids")
    [reply] = await reader.ask(partition, ("ZRANGEBYLEX", ids, lowest, "+", "LIMIT", 0, count))
    return [id.decode() for id in reply]


async def list_records(reader: Reader, query: ListQuery) -> IntegrationPage:
    """One page of integrations, merged from the pages of all partitions."""
    require_limit(query.limit)
    if query.after and not INTEGRATION_ID.fullmatch(query.after):
        raise bad_cursor()
    parts = await all_of(
        *(_matching(reader, partition, query) for partition in range(reader.keys.partitions))
    )
    ids = sorted(id for part in parts for id in part)
    page = ids[: query.limit]
    by_partition: dict[int, list[str]] = {}
    for id in page:
        by_partition.setdefault(reader.keys.partition_of(id), []).append(id)
    found = await all_of(*(records(reader, *part) for part in by_partition.items()))
    listed = [each.record for part in found for each in part if each is not None and not each.is_deleted]
    listed.sort(key=lambda record: record.id)
    return IntegrationPage(tuple(listed), page[-1] if len(ids) > query.limit else "")


async def _matching(reader: Reader, partition: int, query: ListQuery) -> list[str]:
    """The first matching ids of one partition: up to one more than fits on a page."""
    status = query.status.value.encode() if query.status is not None else None
    wanted = query.search.casefold().encode()
    matching: list[str] = []
    after = query.after
    while len(matching) <= query.limit:
        ids = await _ids(reader, partition, after, _CHUNK if wanted or status else query.limit + 1)
        if not ids:
            break
        after = ids[-1]
        if not wanted and status is None:
            matching += ids
            continue
        replies = await reader.ask(
            partition, *(("HMGET", reader.keys.of(id, "r"), "status", "search") for id in ids)
        )
        for id, (its_status, text) in zip(ids, replies, strict=True):
            if text is not None and wanted in text and status in (None, its_status):
                matching.append(id)
    return matching[: query.limit + 1]


async def webhook_secrets(reader: Reader, integration_id: str) -> tuple[SealedSecret, ...]:
    """The sealed webhook secrets, in the order of the record."""
    keys = reader.keys
    partition = keys.partition_of(integration_id)
    reply, sealed = await reader.ask(
        partition, record_command(keys, integration_id), ("HGETALL", keys.of(integration_id, "w"))
    )
    found, kept = found_record(reply), dict(pairs(sealed))
    known = found.record.webhook_secrets if found is not None else ()
    return tuple(
        SealedSecret(secret.id, kept[secret.id.encode()].decode())
        for secret in known
        if secret.id.encode() in kept
    )


async def last_uses(reader: Reader, integration_id: str) -> Mapping[str, LastUse]:
    """The latest use of each credential of the integration."""
    partition = reader.keys.partition_of(integration_id)
    [reply] = await reader.ask(partition, ("HGETALL", reader.keys.of(integration_id, "u")))
    return {id.decode(): last_use_of(text) for id, text in pairs(reply)}


def seen_command(keys: RegistryKeys, integration_id: str, now_us: int) -> Command:
    """The command that reads the addresses seen in the last hour, newest first."""
    lowest = f"({now_us - SEEN_WINDOW_US}"
    key = keys.of(integration_id, "s")
    return ("ZREVRANGEBYSCORE", key, "+inf", lowest, "LIMIT", 0, ADDRESSES_SEEN_MAX)


def seen_of(reply: list[bytes]) -> tuple[Address, ...]:
    """Parse the reply to `seen_command`."""
    return tuple(bytes.fromhex(address.decode()) for address in reply)


async def administrators(reader: Reader) -> tuple[Administrator, ...]:
    """Every account, ordered by id."""
    [reply] = await reader.ask(HOME, ("HGETALL", reader.keys.named(HOME, "admins")))
    return tuple(account_of(text) for _, text in sorted(pairs(reply)))


async def token_holder(reader: Reader, token_id: str) -> Administrator | None:
    """The account that a token id was issued to."""
    tokens = reader.keys.named(HOME, "tokens")
    holder, time = await reader.ask(HOME, ("HGET", tokens, token_id), ("TIME",))
    learn_time_us(reader, time)
    if holder is None:
        return None
    [text] = await reader.ask(HOME, ("HGET", reader.keys.named(HOME, "admins"), holder))
    return account_of(text) if text is not None else None


async def server_time_us(reader: Reader) -> int:
    """The clock of the node of partition 0, which times all changes."""
    [time] = await reader.ask(HOME, ("TIME",))
    return learn_time_us(reader, time)


def learn_time_us(reader: Reader, reply: Sequence[bytes]) -> int:
    """Parse the *reply* to TIME of the node of partition 0, and update the clock."""
    now_us = int(reply[0]) * 1_000_000 + int(reply[1])
    reader.nodes.clock.update("", now_us)
    return now_us


def pairs(reply: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Pair up a flat reply of alternating names and values."""
    return list(zip(reply[::2], reply[1::2], strict=True))

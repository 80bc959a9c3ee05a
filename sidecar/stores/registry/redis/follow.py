"""Reading the changes since a revision, and checking that the revision is part of the history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sidecar.domain.audit import ChainHead
from sidecar.domain.changes import Revision
from sidecar.domain.integrations import Integration
from sidecar.stores.registry.protocol import CHANGES_MAX, Changes, RegistryDamagedError, lost_record
from sidecar.stores.registry.redis.history import History
from sidecar.stores.registry.redis.reads import Reader, all_of, head_command, records
from sidecar.stores.registry.redis.replies import entry_of, head_of


async def changes_since(
    reader: Reader, since: Revision, partitions: Iterable[int], history: History
) -> tuple[Changes, Mapping[int, ChainHead]]:
    """
    The changes after *since* in *partitions*, with the heads that were read there.

    At most `CHANGES_MAX` records are returned; the revision of a partition shows how far it was read.
    """
    numbers = tuple(partitions)
    found_heads = await all_of(*(_head(reader, partition) for partition in numbers))
    heads = dict(zip(numbers, found_heads, strict=True))
    if not all(await all_of(*(_is_same(reader, since, head, history) for head in heads.values()))):
        sequences = list(since.sequences)
        for partition, head in heads.items():
            sequences[partition] = head.sequence
        return Changes(Revision(tuple(sequences)), is_reset=True), heads
    sequences = list(since.sequences)
    changed: list[Integration] = []
    deleted: list[str] = []
    room = CHANGES_MAX
    for partition, head in heads.items():
        if head.sequence == since.sequences[partition]:
            continue
        ids, reached = await _changed_ids(reader, partition, since.sequences[partition], room)
        room -= len(ids)
        for id, found in zip(ids, await records(reader, partition, ids), strict=True):
            if found is None:
                raise RegistryDamagedError(lost_record(id))
            if found.is_deleted:
                deleted.append(id)
            else:
                changed.append(found.record)
        if reached is not None:
            sequences[partition] = reached
            return Changes(Revision(tuple(sequences)), tuple(changed), tuple(deleted), has_more=True), heads
        sequences[partition] = head.sequence
        history.deliver(head)
    return Changes(Revision(tuple(sequences)), tuple(changed), tuple(deleted)), heads


async def _head(reader: Reader, partition: int) -> ChainHead:
    [reply] = await reader.ask(partition, head_command(reader.keys, partition))
    return head_of(partition, reply)


async def _is_same(reader: Reader, since: Revision, head: ChainHead, history: History) -> bool:
    """Whether the chain up to *head* contains the entry of *since*."""
    sequence = since.sequences[head.chain]
    if sequence > head.sequence:
        return False
    digest = history.digest_at(head.chain, sequence)
    if digest is None or sequence == 0:
        return True
    if sequence == head.sequence:
        return digest == head.digest
    entry_id = f"{sequence}-0"
    log = reader.keys.named(head.chain, "audit")
    [reply] = await reader.ask(head.chain, ("XRANGE", log, entry_id, entry_id))
    return bool(reply) and entry_of(head.chain, reply[0]).digest == digest


async def _changed_ids(reader: Reader, partition: int, after: int, room: int) -> tuple[list[str], int | None]:
    """Up to *room* ids ordered by latest change, and the last sequence read; None = there are no more."""
    changes = reader.keys.named(partition, "changes")
    [reply] = await reader.ask(
        partition, ("ZRANGEBYSCORE", changes, f"({after}", "+inf", "WITHSCORES", "LIMIT", 0, room + 1)
    )
    ids = [member.decode() for member in reply[::2]]
    if len(ids) <= room:
        return ids, None
    return ids[:room], int(reply[2 * room - 1]) if room else after

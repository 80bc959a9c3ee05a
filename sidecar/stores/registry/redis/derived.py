"""
Verification of the derived data of the registry in Redis.

Several keys cannot be read atomically. A difference is read again; it is reported if the record was the same
before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sidecar.domain.audit import AuditEntry
from sidecar.domain.records import record_digest
from sidecar.stores.registry.derived import (
    DELETED,
    INTEGRATION,
    DerivedFields,
    DerivedProblem,
    claim_problem,
    issued_ids,
    orphan_problem,
    record_problems,
)
from sidecar.stores.registry.protocol import PAGE_MAX, RecordProof
from sidecar.stores.registry.redis.keys import HOME, RegistryKeys
from sidecar.stores.registry.redis.nodes import Command
from sidecar.stores.registry.redis.reads import Reader, all_of, heads, pairs

LOOKS_MAX = 5
"""Maximum number of reads of a record that keeps changing; then it is left to the next verification."""

_INDEXED = ("subject", "actor", "action")
_CHUNK = 500
_FIELDS = ("record", "sequence", "status", "search")


async def record_proofs(reader: Reader, chain: int, after: str) -> tuple[RecordProof, ...]:
    """Proofs of administrators (in partition 0) and of integrations, ordered by subject."""
    if not 0 <= chain < reader.keys.partitions:
        return ()
    proofs: list[RecordProof] = []
    if chain == HOME and not after.startswith("integration:"):
        proofs += await _account_proofs(reader, after.removeprefix("administrator:"))
    after = after.removeprefix("integration:") if after.startswith("integration:") else ""
    if len(proofs) < PAGE_MAX:
        proofs += await _integration_proofs(reader, chain, after, PAGE_MAX - len(proofs))
    return tuple(proofs)


async def _account_proofs(reader: Reader, after: str) -> list[RecordProof]:
    kept, sequences = await reader.ask(
        HOME,
        ("HGETALL", reader.keys.named(HOME, "admins")),
        ("HGETALL", reader.keys.named(HOME, "admins-at")),
    )
    at = dict(pairs(sequences))
    return [
        RecordProof(f"administrator:{id.decode()}", HOME, int(at.get(id, b"0")), record_digest(text.decode()))
        for id, text in sorted(pairs(kept))
        if id.decode() > after
    ][:PAGE_MAX]


async def _integration_proofs(reader: Reader, chain: int, after: str, count: int) -> list[RecordProof]:
    """Proofs of integrations, also deleted ones, which only `changes` lists, in another order."""
    [reply] = await reader.ask(chain, ("ZRANGE", reader.keys.named(chain, "changes"), 0, -1))
    ids = sorted(member.decode() for member in reply)
    ids = [id for id in ids if id > after][:count]
    commands = [command for id in ids for command in _read_commands(reader.keys, chain, id)]
    replies = await reader.ask(chain, *commands)
    each = len(replies) // max(1, len(ids))
    return [
        await _proof(reader, chain, id, replies[number * each : (number + 1) * each])
        for number, id in enumerate(ids)
    ]


def _read_commands(keys: RegistryKeys, chain: int, integration_id: str) -> list[Command]:
    """Commands that read a record and its derived data; the sequence first and last."""
    return [
        ("HMGET", keys.of(integration_id, "r"), *_FIELDS),
        ("GET", keys.of(integration_id, "g")),
        ("ZSCORE", keys.named(chain, "ids"), integration_id),
        ("ZSCORE", keys.named(chain, "changes"), integration_id),
        ("HKEYS", keys.of(integration_id, "w")),
        ("HGET", keys.of(integration_id, "r"), "sequence"),
    ]


async def _proof(reader: Reader, chain: int, integration_id: str, replies: Sequence[Any]) -> RecordProof:
    """The proof of an integration, from *replies* to `_read_commands`; differences are read again."""
    problems: tuple[str, ...] = ()
    for _ in range(LOOKS_MAX):
        (stored, sequence, status, search), generation, in_ids, in_changes, secrets, sequence_after = replies
        if sequence == sequence_after:
            kept = DerivedFields(
                _text(status),
                _number(generation),
                _text(search),
                [name.decode(errors="replace") for name in secrets],
            )
            found = _problems(_text(stored) or "", kept, in_ids, (sequence, in_changes))
            if found == problems:
                break  # no problems, or the same twice
            problems = found
        replies = await reader.ask(chain, *_read_commands(reader.keys, chain, integration_id))
    return RecordProof(
        f"integration:{integration_id}",
        chain,
        _number(sequence) or 0,
        record_digest(_text(stored) or ""),
        _text(status) == DELETED,
        problems,
    )


def _problems(stored: str, kept: DerivedFields, in_ids: Any, sequences: tuple[Any, Any]) -> tuple[str, ...]:
    """The differences between *stored* and its derived data; *sequences*: of the record, in 'changes'."""
    problems = record_problems(stored, kept)
    if kept.status != DELETED and in_ids is None:
        problems.append("'ids' lacks the integration, so lists do not show it")
    if kept.status == DELETED and in_ids is not None:
        problems.append("'ids' lists the integration, although it is deleted")
    own, in_changes = map(_number, sequences)
    if own != in_changes:
        problems.append(f"'changes' lists sequence {in_changes}, the latest change is {own}")
    return tuple(problems)


async def entry_problems(
    reader: Reader, chain: int, entries: Sequence[AuditEntry]
) -> tuple[DerivedProblem, ...]:
    """Indexes that lack *entries*, and claims that differ from the ids that the entries issued."""
    keys = reader.keys
    wanted = [(entry, name, str(getattr(entry, name))) for entry in entries for name in _INDEXED]
    scores = await reader.ask(
        chain, *(("ZSCORE", keys.index(chain, name, value), entry.sequence) for entry, name, value in wanted)
    )
    problems = [
        DerivedProblem(
            entry.sequence, f"the index of {name} {value} lacks the entry, so lists do not show it"
        )
        for (entry, name, value), score in zip(wanted, scores, strict=True)
        if _number(score) != entry.sequence
    ]
    for entry in entries:
        for issued in issued_ids(entry):
            problems += await _claim_problems(reader, chain, entry, issued)
    return tuple(problems)


async def _claim_problems(reader: Reader, chain: int, entry: AuditEntry, issued: str) -> list[DerivedProblem]:
    keys = reader.keys
    kind, _, name = entry.subject.partition(":")
    if kind != INTEGRATION:
        [holder] = await reader.ask(HOME, ("HGET", keys.named(HOME, "tokens"), issued))
        return [] if _text(holder) == name else [claim_problem(entry, issued, _text(holder))]
    [generation], [owner] = await all_of(
        reader.ask(chain, ("HGET", keys.of(name, "k"), issued)),
        reader.ask(keys.partition_of(issued), ("GET", keys.claim(issued))),
    )
    problems = []
    if _number(generation) != entry.generation:
        kept = None if generation is None else f"generation {_text(generation)}"
        problems.append(claim_problem(entry, issued, kept))
    claimed_by = (_text(owner) or "").rpartition(" ")[2]  # '<time> <integration>'
    if claimed_by != name:
        problems.append(claim_problem(entry, issued, claimed_by or None))
    return problems


async def chain_problems(reader: Reader, chain: int) -> tuple[DerivedProblem, ...]:
    """Listed ids without a record, a wrong epoch, and claims without an owner in one partition."""
    keys = reader.keys
    problems: list[DerivedProblem] = []
    for name in ("ids", "changes"):
        problems += await _missing_records(reader, chain, name)
    [epoch] = await reader.ask(chain, ("GET", keys.named(chain, "epoch")))
    latest = (await heads(reader))[HOME].sequence
    if (_number(epoch) or 0) > latest:
        message = f"'epoch' is {_number(epoch)}, later than any change of administrators: all changes fail"
        problems.append(DerivedProblem(0, message))
    if chain == HOME:
        problems += await _token_problems(reader, keys)
    return tuple(problems)


async def _missing_records(reader: Reader, chain: int, name: str) -> list[DerivedProblem]:
    """Members of the list *name* that have no record."""
    problems: list[DerivedProblem] = []
    first = 0
    while True:
        page = ("ZRANGE", reader.keys.named(chain, name), first, first + _CHUNK - 1)
        [members] = await reader.ask(chain, page)
        if not members:
            return problems
        first += len(members)
        ids = [member.decode(errors="replace") for member in members]
        records = await reader.ask(chain, *(("HGET", reader.keys.of(id, "r"), "status") for id in ids))
        problems += [
            DerivedProblem(0, f"'{name}' lists {id!r}, which has no record")
            for id, status in zip(ids, records, strict=True)
            if status is None
        ]


async def _token_problems(reader: Reader, keys: RegistryKeys) -> list[DerivedProblem]:
    tokens, administrators = await reader.ask(
        HOME, ("HGETALL", keys.named(HOME, "tokens")), ("HKEYS", keys.named(HOME, "admins"))
    )
    return [
        orphan_problem(token.decode(errors="replace"))
        for token, holder in pairs(tokens)
        if holder not in administrators
    ]


def _text(reply: bytes | None) -> str | None:
    return None if reply is None else reply.decode(errors="replace")


def _number(reply: Any) -> int | None:
    """Parse a reply that should be an integer; None = missing or not a number."""
    try:
        return None if reply is None else int(float(reply))
    except ValueError:
        return None

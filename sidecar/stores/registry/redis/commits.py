"""
Changes of integrations: read, plan, claim, and commit by comparing the head of the chain.

All changes of one batch are of one partition. They are planned one upon the other and committed by one
script call: what the plan was made on is still so, or nothing is written and all is planned anew. So the
rules of the domain hold at the moment of the commit, whatever other processes do.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TypeAlias

from sidecar.domain.accounts import confirm
from sidecar.domain.audit import AuditEntry, ChainHead
from sidecar.domain.canonical import canonical_json
from sidecar.domain.changes import ChangePlan, ChangeRequest, Committed, Current, plan
from sidecar.domain.cidr import Address
from sidecar.domain.lifecycle.credentials import credential_id_used
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.lifecycle.outcome import Outcome
from sidecar.domain.refusals import RefusedError
from sidecar.stores.redis.limits import Backoff
from sidecar.stores.registry.derived import search_text
from sidecar.stores.registry.protocol import (
    IDEMPOTENCY_LIFETIME_US,
    RegistryDamagedError,
    RegistryError,
    RegistryTimeoutError,
)
from sidecar.stores.registry.redis.claims import Claims
from sidecar.stores.registry.redis.idempotency import (
    KeyReservations,
    field_of,
    kept_max,
    kept_result,
    mismatch,
    result_commands,
    result_of,
)
from sidecar.stores.registry.redis.keys import RegistryKeys
from sidecar.stores.registry.redis.nodes import Command, Nodes, ReplyLostError, Word, call_of
from sidecar.stores.registry.redis.people import ActingAccounts, read_people
from sidecar.stores.registry.redis.reads import Reader, head_command, record_command, seen_command, seen_of
from sidecar.stores.registry.redis.replies import FoundRecord, entry_of, found_record, head_of
from sidecar.stores.registry.redis.scripts import CHANGE
from sidecar.stores.registry.results import replayed_commit, stored_commit

BATCH_MAX = 64
"""Changes of one script call: some milliseconds of Redis, which serves nobody else meanwhile."""
PAUSE_FIRST_S = 0.001
PAUSE_MAX_S = 0.1
"""Between two attempts that others were quicker than: up to this, and half of it at random."""
PLANS_PER_TURN = 4

Result: TypeAlias = Committed | RefusedError


@dataclass(slots=True)
class _Staged:
    """A change that is planned and not yet committed; `entry` None = all was so already."""

    index: int
    request: ChangeRequest
    outcome: Outcome
    stored: str
    entry: AuditEntry | None
    committed: Committed


@dataclass(slots=True)
class _View:
    """What was read for a round; `found` and `head` move on as changes are staged."""

    people: ActingAccounts
    head: ChainHead
    found: dict[str, FoundRecord | None]
    seen: dict[str, tuple[Address, ...]]
    results: dict[str, tuple[bytes | None, bytes | None]]
    lost: list[bool]


@dataclass(slots=True)
class _Round:
    """What planning came to; final once what is staged is committed."""

    results: dict[int, Result] = field(default_factory=dict)
    staged: list[_Staged] = field(default_factory=list)


class Committer:
    """Makes changes in the partitions of a registry."""

    def __init__(
        self, nodes: Nodes, keys: RegistryKeys, lifecycle: Lifecycle, clock_us: Callable[[], int] | None
    ) -> None:
        """Apply the rules of *lifecycle*; *clock_us* replaces the server's clock, in tests."""
        self._nodes = nodes
        self._keys = keys
        self._lifecycle = lifecycle
        self._clock_us = clock_us
        self._claims = Claims(nodes, keys)
        self._promises = KeyReservations(nodes, keys)
        self._turns = defaultdict[int, asyncio.Lock](asyncio.Lock)

    async def change(
        self, partition: int, requests: Sequence[ChangeRequest], deadline_s: float
    ) -> list[Result]:
        """
        Make changes of one partition, each whole or absent, in order.

        Raises:
            RegistryError: the store failed; `may_have_happened` tells whether some may be in force.
        """
        batch = _Batch(self, partition, requests, deadline_s)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - monotonic())):
                async with self._turns[partition]:  # changes of one process need not race each other
                    return await batch.run()
        except TimeoutError:
            raise RegistryTimeoutError(
                "the registry did not commit the change in time", may_have_happened=batch.is_open
            ) from None

    async def preview(self, reader: Reader, request: ChangeRequest) -> Outcome:
        """
        What the change would do; reads only.

        Raises:
            RefusedError: as the change would.
        """
        integration_id = request.command.integration_id
        batch = _Batch(self, self._keys.partition_of(integration_id), [request], reader.deadline_s)
        view = await batch.read([0])
        outcome = plan(self._lifecycle, current(view, request), request, view.people.now_us).outcome
        for credential_id in outcome.claims:
            if await self._claims.is_used(reader, credential_id, integration_id):
                raise credential_id_used(credential_id)
        return outcome


def current(view: _View, request: ChangeRequest) -> Current:
    """What the registry knows for this change."""
    integration_id = request.command.integration_id
    found = view.found[integration_id]
    return Current(
        record=found.record if found is not None and not found.is_deleted else None,
        is_deleted=found is not None and found.is_deleted,
        holder=view.people.holders.get(request.actor.id),
        head=view.head,
        addresses_seen=view.seen[integration_id],
    )


class _Batch:
    """Some changes of one partition on their way."""

    def __init__(
        self, committer: Committer, partition: int, requests: Sequence[ChangeRequest], deadline_s: float
    ) -> None:
        self._committer = committer
        self._nodes = committer._nodes
        self._keys = committer._keys
        self._partition = partition
        self._requests = requests
        self._deadline_s = deadline_s
        self._reader = Reader(self._nodes, self._keys, deadline_s)
        self._refused: dict[int, RefusedError] = {}  # for what no further look can change
        self._claimed: set[tuple[str, str]] = set()
        self._lost: list[_Round] = []  # calls whose reply did not come
        self.is_open = False
        """A call has left whose outcome is not known."""

    async def run(self) -> list[Result]:
        """Try until it is committed; the caller's deadline ends it."""
        results: dict[int, Result] = {}
        pauses = Backoff(PAUSE_FIRST_S, PAUSE_MAX_S)
        while True:
            pending = [index for index in range(len(self._requests)) if index not in results]
            if not pending:
                return [results[index] for index in range(len(self._requests))]
            try:
                done = await self._try(pending)
            except RegistryError as error:
                raise self._told(error) from error
            if done is not None:
                results |= done
                continue
            await asyncio.sleep(pauses.next_s())

    async def _try(self, pending: Sequence[int]) -> dict[int, Result] | None:
        """One round; None = others were quicker, or something became known: once more."""
        view = await self.read(pending)
        for made, was_made in zip(self._lost, view.lost, strict=True):
            if was_made:
                is_durable = await self._settled(_first_entry(made).head)
                if is_durable is None:
                    return None
                self._lost, self.is_open = [], False
                return self._results(made, is_durable)
        found = view.head
        planned = await self._plan(view, pending)
        if not await self._claim(planned, view.people.now_us):
            return None
        if not any(one.entry for one in planned.staged):
            # What was so already must be so in the history that counts, and be as durable as a change.
            await self._keep_unchanged(planned, view.people.now_us)
            is_durable = await self._settled(found) if _has_committed(planned) else True
        else:
            is_durable = await self._commit(planned, view)
        return self._results(planned, is_durable) if is_durable is not None else None

    async def _settled(self, head: ChainHead) -> bool | None:
        """Whether the chain up to *head* is durable; None = that is not the history that counts."""
        keys, at = self._keys, f"{head.sequence}-0"
        commands: list[Command] = [
            ("SET", keys.once(self._partition, "settled"), head.sequence),
            ("XRANGE", keys.once(self._partition, "audit"), at, at),
        ]
        if not head.sequence:
            del commands[1]
        try:
            replies, is_durable = await self._nodes.write(self._partition, commands, self._deadline_s)
        except ReplyLostError:
            return None
        if head.sequence:
            [found] = replies[1] or [None]
            if found is None or entry_of(self._partition, found).digest != head.digest:
                return None
        return is_durable

    def _results(self, made: _Round, is_durable: bool) -> dict[int, Result]:
        results = made.results | {one.index: one.committed for one in made.staged}
        return {
            index: replace(result, is_durable=is_durable) if isinstance(result, Committed) else result
            for index, result in results.items()
        }

    def _told(self, error: RegistryError) -> RegistryError:
        """The same error; it says so when a call's outcome is not known."""
        error.may_have_happened = error.may_have_happened or self.is_open
        return error

    # Read.

    async def read(self, pending: Sequence[int]) -> _View:
        """Read all that these changes need: the people first, then the chain's head, then the records."""
        requests = [self._requests[index] for index in pending]
        people = await read_people(
            self._reader, (request.actor.id for request in requests), self._committer._clock_us
        )
        ids = list(dict.fromkeys(request.command.integration_id for request in requests))
        fields = list(
            dict.fromkeys(filter(None, (field_of(request.actor.id, request.context) for request in requests)))
        )
        replies = await self._reader.ask(self._partition, *self._commands(ids, fields, people.now_us))
        head, replies = head_of(self._partition, replies[0]), replies[1:]
        records, replies = replies[: len(ids)], replies[len(ids) :]
        seen, replies = replies[: len(ids)], replies[len(ids) :]
        kept, lost = replies[: 2 * len(fields)], replies[2 * len(fields) :]
        return _View(
            people=people,
            # Times on record follow one another over all partitions, whatever clocks do.
            head=head._replace(at_us=max(head.at_us, people.head.at_us)),
            found={one: found_record(reply) for one, reply in zip(ids, records, strict=True)},
            seen={one: seen_of(reply) for one, reply in zip(ids, seen, strict=True)},
            results={one: (kept[2 * n], kept[2 * n + 1]) for n, one in enumerate(fields)},
            lost=[self._is_there(made, reply) for made, reply in zip(self._lost, lost, strict=True)],
        )

    def _commands(self, ids: Sequence[str], fields: Sequence[str], now_us: int) -> list[Command]:
        keys, partition = self._keys, self._partition
        commands: list[Command] = [head_command(keys, partition)]
        commands += (record_command(keys, one) for one in ids)
        commands += (seen_command(keys, one, now_us) for one in ids)
        for one in fields:
            commands += result_commands(keys, partition, one)
        for made in self._lost:
            at = f"{_first_entry(made).sequence}-0"
            commands.append(("XRANGE", keys.once(partition, "audit"), at, at))
        return commands

    def _is_there(self, made: _Round, reply: list[object]) -> bool:
        """Whether the first entry of a call whose reply was lost is in the chain: then all of it is."""
        digest = _first_entry(made).to_stored().digest
        return bool(reply) and entry_of(self._partition, reply[0]).digest == digest  # type: ignore[arg-type]

    # Plan.

    async def _plan(self, view: _View, pending: Sequence[int]) -> _Round:
        planned = _Round()
        fields: set[str] = set()
        for count, index in enumerate(pending, 1):
            request = self._requests[index]
            kept = field_of(request.actor.id, request.context)
            if kept and kept in fields:
                break  # it repeats one of this round: its answer is that one's, once that is committed
            fields.add(kept)
            try:
                await self._plan_one(view, index, planned)
            except RefusedError as error:
                planned.results[index] = error
            if count % PLANS_PER_TURN == 0:
                await asyncio.sleep(0)
        return planned

    async def _plan_one(self, view: _View, index: int, planned: _Round) -> None:
        if index in self._refused:
            raise self._refused[index]
        request, people = self._requests[index], view.people
        kept = field_of(request.actor.id, request.context)
        if kept:
            confirm(request.actor, people.holders.get(request.actor.id), people.now_us)
            result = result_of(*view.results[kept], request.context, people.now_us)
            if result is not None:
                planned.results[index] = replayed_commit(result)
                return
            where = _where(request)
            await self._committer._promises.check(self._reader, kept, request.context, where, people.now_us)
        made = plan(self._committer._lifecycle, current(view, request), request, people.now_us)
        planned.staged.append(_staged(index, request, made))
        if made.entry is not None:
            outcome = made.outcome
            view.found[outcome.record.id] = FoundRecord(outcome.record, outcome.is_deleted)
            view.head = made.entry.head

    # Claim.

    async def _claim(self, planned: _Round, now_us: int) -> bool:
        """Claim credential ids and idempotency keys; False = one is taken, so plan anew without it."""
        for one in planned.staged:
            if not await self._claim_ids(one):
                return False
        for one in planned.staged:
            kept, context = field_of(one.request.actor.id, one.request.context), one.request.context
            if kept and not await self._committer._promises.make(
                kept, context, _where(one.request), now_us, self._deadline_s
            ):
                self._refused[one.index] = mismatch()
                return False
        return True

    async def _claim_ids(self, staged: _Staged) -> bool:
        integration_id = staged.outcome.record.id
        for credential_id in staged.outcome.claims:
            if (credential_id, integration_id) in self._claimed:
                continue
            if not await self._committer._claims.claim(credential_id, integration_id, self._deadline_s):
                self._refused[staged.index] = credential_id_used(credential_id)
                return False
            self._claimed.add((credential_id, integration_id))
        return True

    # Commit.

    async def _commit(self, planned: _Round, view: _View) -> bool | None:
        """Commit it, and whether that is durable; None = plan anew."""
        written = [one for one in planned.staged if one.entry is not None]
        keys, arguments = self._call(written, view)
        try:
            [(verdict, *details)], is_durable = await self._nodes.write(
                self._partition, [call_of(CHANGE, keys, arguments)], self._deadline_s, on_sent=self._sent
            )
        except ReplyLostError:
            self._lost.append(planned)
            return None
        except RegistryError:
            self.is_open = bool(self._lost)  # the server refused this call, or never got it
            raise
        self.is_open = bool(self._lost)
        if verdict == b"claimed":
            index = written[int(details[0]) - 1].index
            self._refused[index] = credential_id_used(details[1].decode())
        elif verdict == b"guard":
            raise RegistryDamagedError(
                f"a guard of the registry refused the change ({details[1].decode()}): verify the audit log,"
                " and report it"
            )
        elif verdict == b"ok":
            unchanged = [one for one in planned.staged if one.entry is None]
            await self._keep_unchanged(_Round(staged=unchanged), view.people.now_us)
            return is_durable
        return None

    def _sent(self) -> None:
        self.is_open = True

    def _call(self, written: Sequence[_Staged], view: _View) -> tuple[list[str], list[Word]]:
        """Keys and arguments of change.lua; see there."""
        first = written[0].entry
        assert first is not None  # only changes are written
        partition, of = self._partition, self._keys.of
        names = ("audit", "changes", "ids", "epoch", "results", "results-age")
        keys = [self._keys.once(partition, name) for name in names]
        arguments: list[Word] = [
            *(partition, view.people.epoch, first.sequence - 1, first.previous, self._keys.channel),
            *(view.people.now_us, IDEMPOTENCY_LIFETIME_US, kept_max(self._keys.partitions)),
        ]
        for one in written:
            entry = one.entry
            assert entry is not None
            keys += [of(one.outcome.record.id, kind) for kind in "rgkw"]
            keys += index_keys(self._keys, partition, entry)
            arguments += _change_arguments(one, entry)
        return keys, arguments

    async def _keep_unchanged(self, planned: _Round, now_us: int) -> None:
        """Keep the answers to requests that changed nothing: they may be repeated all the same."""
        results, ages = (self._keys.once(self._partition, name) for name in ("results", "results-age"))
        commands: list[Command] = []
        for one in planned.staged:
            kept = field_of(one.request.actor.id, one.request.context)
            if kept:
                commands.append(("HSETNX", results, kept, _kept_result(one)))
                commands.append(("ZADD", ages, "NX", now_us, kept))
        if commands:
            await self._nodes.run(self._partition, commands, self._deadline_s)


def index_keys(keys: RegistryKeys, partition: int, entry: AuditEntry) -> list[str]:
    """The audit indexes that *entry* belongs to."""
    names = (("subject", entry.subject), ("actor", entry.actor), ("action", entry.action))
    return [keys.index(partition, filtered, name) for filtered, name in names]


def _change_arguments(one: _Staged, entry: AuditEntry) -> list[Word]:
    outcome, stored = one.outcome, entry.to_stored()
    record = outcome.record
    kept = field_of(one.request.actor.id, one.request.context)
    return [
        *(record.id, "deleted" if outcome.is_deleted else record.status.value, record.generation),
        *(stored.sequence, stored.digest, stored.body, one.stored, search_text(record)),
        canonical_json(list(outcome.claims)),
        canonical_json({secret.id: secret.sealed for secret in outcome.sealed}),
        *(kept, _kept_result(one) if kept else ""),
    ]


def _staged(index: int, request: ChangeRequest, made: ChangePlan) -> _Staged:
    outcome = made.outcome
    committed = Committed(outcome.record, made.entry, outcome.notices, outcome.is_deleted)
    return _Staged(index, request, outcome, made.stored or "", made.entry, committed)


def _kept_result(one: _Staged) -> str:
    return kept_result(one.request.context, stored_commit(one.committed))


def _where(request: ChangeRequest) -> str:
    return f"integration:{request.command.integration_id}"


def _has_committed(planned: _Round) -> bool:
    return bool(planned.staged) or any(isinstance(result, Committed) for result in planned.results.values())


def _first_entry(made: _Round) -> AuditEntry:
    return next(one.entry for one in made.staged if one.entry is not None)

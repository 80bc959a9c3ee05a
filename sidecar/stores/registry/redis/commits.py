"""
Changes of integrations: read, plan, claim, and commit by comparing the head of the chain.

All changes of one batch belong to one partition. Each is planned on the result of the one before, and one
script call commits all of them: if the state that they were planned on has changed, nothing is written and
all are planned again. So the rules of the domain hold at the time of the commit, whatever other processes do.
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
from sidecar.stores.registry.base import FoundRecord, idempotency_mismatch
from sidecar.stores.registry.derived import search_text
from sidecar.stores.registry.protocol import (
    IDEMPOTENCY_LIFETIME_US,
    RegistryDamagedError,
    RegistryError,
    RegistryTimeoutError,
)
from sidecar.stores.registry.redis.acting_accounts import ActingAccounts, read_accounts
from sidecar.stores.registry.redis.claims import Claims
from sidecar.stores.registry.redis.idempotency import (
    KeyReservations,
    field_of,
    kept_max,
    kept_result,
    result_commands,
    result_of,
)
from sidecar.stores.registry.redis.keys import RegistryKeys
from sidecar.stores.registry.redis.nodes import Command, Nodes, ReplyLostError, Word, call_of
from sidecar.stores.registry.redis.reads import Reader, head_command, record_command, seen_command, seen_of
from sidecar.stores.registry.redis.replies import entry_of, found_record, head_of
from sidecar.stores.registry.redis.scripts import CHANGE
from sidecar.stores.registry.results import replayed_commit, stored_commit

BATCH_MAX = 64
"""Maximum number of changes per script call: a few milliseconds, in which Redis serves no other client."""
PAUSE_FIRST_S = 0.001
PAUSE_MAX_S = 0.1
"""The longest pause between two attempts, after other changes were committed first; half of it is random."""
PLANS_PER_TURN = 4
"""Changes to plan in one turn of the event loop, so that a suspension does not wait for a batch of 1,000."""

Result: TypeAlias = Committed | RefusedError


@dataclass(slots=True)
class _Staged:
    """A change that is planned and not yet committed; `entry` None = it changes nothing."""

    index: int
    request: ChangeRequest
    outcome: Outcome
    stored: str
    entry: AuditEntry | None
    committed: Committed


@dataclass(slots=True)
class _View:
    """The state that was read for a round; staging a change updates `found` and `head`."""

    accounts: ActingAccounts
    head: ChainHead
    found: dict[str, FoundRecord | None]
    seen: dict[str, tuple[Address, ...]]
    results: dict[str, tuple[bytes | None, bytes | None]]
    lost: list[bool]


@dataclass(slots=True)
class _Round:
    """The results of one round of planning; final once the staged changes are committed."""

    results: dict[int, Result] = field(default_factory=dict)
    staged: list[_Staged] = field(default_factory=list)


class Committer:
    """Makes changes in the partitions of a registry."""

    def __init__(
        self, nodes: Nodes, keys: RegistryKeys, lifecycle: Lifecycle, clock_us: Callable[[], int] | None
    ) -> None:
        """Apply the rules of *lifecycle*; *clock_us* replaces the server's clock in tests."""
        self._nodes = nodes
        self._keys = keys
        self._lifecycle = lifecycle
        self._clock_us = clock_us
        self._claims = Claims(nodes, keys)
        self._reservations = KeyReservations(nodes, keys)
        self._turns = defaultdict[int, asyncio.Lock](asyncio.Lock)

    async def change(
        self, partition: int, requests: Sequence[ChangeRequest], deadline_s: float
    ) -> list[Result]:
        """
        Make changes of one partition in order, each atomic.

        Raises:
            RegistryError: the store failed; see `may_have_happened`.
        """
        batch = _Batch(self, partition, requests, deadline_s)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - monotonic())):
                async with self._turns[partition]:  # changes of one process do not compete
                    return await batch.run()
        except TimeoutError:
            raise RegistryTimeoutError(
                "the registry did not commit the change in time", may_have_happened=batch.is_open
            ) from None

    async def preview(self, reader: Reader, request: ChangeRequest) -> Outcome:
        """
        The outcome that the change would have; reads only.

        Raises:
            RefusedError: the change would raise it.
        """
        integration_id = request.command.integration_id
        batch = _Batch(self, self._keys.partition_of(integration_id), [request], reader.deadline_s)
        view = await batch.read([0])
        outcome = plan(self._lifecycle, current(view, request), request, view.accounts.now_us).outcome
        for credential_id in outcome.claims:
            if await self._claims.is_used(reader, credential_id, integration_id):
                raise credential_id_used(credential_id)
        return outcome


def current(view: _View, request: ChangeRequest) -> Current:
    """The stored state that this change is planned on."""
    integration_id = request.command.integration_id
    found = view.found[integration_id]
    return Current(
        record=found.record if found is not None and not found.is_deleted else None,
        is_deleted=found is not None and found.is_deleted,
        holder=view.accounts.holders.get(request.actor.id),
        head=view.head,
        addresses_seen=view.seen[integration_id],
    )


class _Batch:
    """Changes of one partition in progress."""

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
        self._refused: dict[int, RefusedError] = {}  # refusals that reading again cannot change
        self._claimed: set[tuple[str, str]] = set()
        self._lost: list[_Round] = []  # calls whose reply was lost
        self.is_open = False
        """A call was sent whose outcome is unknown."""

    async def run(self) -> list[Result]:
        """Retry until all changes are committed; the caller's deadline cancels this."""
        results: dict[int, Result] = {}
        pauses = Backoff(PAUSE_FIRST_S, PAUSE_MAX_S)
        while True:
            pending = [index for index in range(len(self._requests)) if index not in results]
            if not pending:
                return [results[index] for index in range(len(self._requests))]
            try:
                done = await self._try(pending)
            except RegistryError as error:
                error.may_have_happened = error.may_have_happened or self.is_open
                raise
            if done is not None:
                results |= done
                continue
            await asyncio.sleep(pauses.next_s())

    async def _try(self, pending: Sequence[int]) -> dict[int, Result] | None:
        """Read, plan and commit once; None = the state has changed or a reply was lost: retry."""
        view = await self.read(pending)
        for lost, is_committed in zip(self._lost, view.lost, strict=True):
            if is_committed:
                is_durable = await self._is_durable(_first_entry(lost).head)
                if is_durable is None:
                    return None
                self._lost, self.is_open = [], False
                return self._results(lost, is_durable)
        found = view.head
        planned = await self._plan(view, pending)
        if not await self._claim(planned, view.accounts.now_us):
            return None
        if not any(staged.entry for staged in planned.staged):
            # Even if nothing changes, the state must be on the current primary and durable.
            await self._keep_unchanged(planned.staged, view.accounts.now_us)
            is_durable = await self._is_durable(found) if _has_committed(planned) else True
        else:
            is_durable = await self._commit(planned, view)
        return self._results(planned, is_durable) if is_durable is not None else None

    async def _is_durable(self, head: ChainHead) -> bool | None:
        """Whether the chain up to *head* is durable; None = a failover lost it."""
        keys, at = self._keys, f"{head.sequence}-0"
        commands: list[Command] = [
            ("SET", keys.named(self._partition, "settled"), head.sequence),
            ("XRANGE", keys.named(self._partition, "audit"), at, at),
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
        results = made.results | {staged.index: staged.committed for staged in made.staged}
        return {
            index: replace(result, is_durable=is_durable) if isinstance(result, Committed) else result
            for index, result in results.items()
        }

    # Reading.

    async def read(self, pending: Sequence[int]) -> _View:
        """Read the state for these changes: the accounts first, then the chain's head, then the records."""
        requests = [self._requests[index] for index in pending]
        accounts = await read_accounts(
            self._reader, (request.actor.id for request in requests), self._committer._clock_us
        )
        ids = list(dict.fromkeys(request.command.integration_id for request in requests))
        fields = list(
            dict.fromkeys(filter(None, (field_of(request.actor.id, request.context) for request in requests)))
        )
        replies = await self._reader.ask(self._partition, *self._commands(ids, fields, accounts.now_us))
        head, replies = head_of(self._partition, replies[0]), replies[1:]
        records, replies = replies[: len(ids)], replies[len(ids) :]
        seen, replies = replies[: len(ids)], replies[len(ids) :]
        kept, lost = replies[: 2 * len(fields)], replies[2 * len(fields) :]
        return _View(
            accounts=accounts,
            # Times of entries must not decrease over all partitions, even if a clock steps back.
            head=head._replace(at_us=max(head.at_us, accounts.head.at_us)),
            found={id: found_record(reply) for id, reply in zip(ids, records, strict=True)},
            seen={id: seen_of(reply) for id, reply in zip(ids, seen, strict=True)},
            results={name: (kept[2 * n], kept[2 * n + 1]) for n, name in enumerate(fields)},
            lost=[self._is_committed(made, reply) for made, reply in zip(self._lost, lost, strict=True)],
        )

    def _commands(self, ids: Sequence[str], fields: Sequence[str], now_us: int) -> list[Command]:
        keys, partition = self._keys, self._partition
        commands: list[Command] = [head_command(keys, partition)]
        commands += (record_command(keys, id) for id in ids)
        commands += (seen_command(keys, id, now_us) for id in ids)
        for name in fields:
            commands += result_commands(keys, partition, name)
        for made in self._lost:
            at = f"{_first_entry(made).sequence}-0"
            commands.append(("XRANGE", keys.named(partition, "audit"), at, at))
        return commands

    def _is_committed(self, made: _Round, reply: list[object]) -> bool:
        """Whether the first entry of a call whose reply was lost, and so all of them, is in the chain."""
        digest = _first_entry(made).to_stored().digest
        return bool(reply) and entry_of(self._partition, reply[0]).digest == digest  # type: ignore[arg-type]

    # Planning.

    async def _plan(self, view: _View, pending: Sequence[int]) -> _Round:
        planned = _Round()
        fields: set[str] = set()
        for count, index in enumerate(pending, 1):
            request = self._requests[index]
            kept = field_of(request.actor.id, request.context)
            if kept and kept in fields:
                break  # a repeat of a change of this round: answer it once that is committed
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
        request, accounts = self._requests[index], view.accounts
        kept = field_of(request.actor.id, request.context)
        if kept:
            confirm(request.actor, accounts.holders.get(request.actor.id), accounts.now_us)
            result = result_of(*view.results[kept], request.context, accounts.now_us)
            if result is not None:
                planned.results[index] = replayed_commit(result)
                return
            where = _where(request)
            await self._committer._reservations.check(
                self._reader, kept, request.context, where, accounts.now_us
            )
        made = plan(self._committer._lifecycle, current(view, request), request, accounts.now_us)
        planned.staged.append(_staged(index, request, made))
        if made.entry is not None:
            outcome = made.outcome
            view.found[outcome.record.id] = FoundRecord(outcome.record, outcome.is_deleted)
            view.head = made.entry.head

    # Claiming.

    async def _claim(self, planned: _Round, now_us: int) -> bool:
        """Claim credential ids and idempotency keys; False = one is taken: plan again without its change."""
        for staged in planned.staged:
            if not await self._claim_ids(staged):
                return False
        for staged in planned.staged:
            request = staged.request
            kept = field_of(request.actor.id, request.context)
            if kept and not await self._committer._reservations.reserve(
                kept, request.context, _where(request), now_us, self._deadline_s
            ):
                self._refused[staged.index] = idempotency_mismatch()
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

    # Committing.

    async def _commit(self, planned: _Round, view: _View) -> bool | None:
        """Commit the staged changes and return whether they are durable; None = plan again."""
        written = [staged for staged in planned.staged if staged.entry is not None]
        keys, arguments = self._call(written, view)
        try:
            [(verdict, *details)], is_durable = await self._nodes.write(
                self._partition, [call_of(CHANGE, keys, arguments)], self._deadline_s, on_sent=self._sent
            )
        except ReplyLostError:
            self._lost.append(planned)
            return None
        except RegistryError:
            self.is_open = bool(self._lost)  # the server refused this call, or did not receive it
            raise
        self.is_open = bool(self._lost)
        if verdict == b"claimed":
            index = written[int(details[0]) - 1].index
            self._refused[index] = credential_id_used(details[1].decode())
        elif verdict == b"guard":
            raise rule_broken(details[1])
        elif verdict == b"ok":
            unchanged = [staged for staged in planned.staged if staged.entry is None]
            await self._keep_unchanged(unchanged, view.accounts.now_us)
            return is_durable
        return None

    def _sent(self) -> None:
        self.is_open = True

    def _call(self, written: Sequence[_Staged], view: _View) -> tuple[list[str], list[Word]]:
        """The keys and arguments of change.lua."""
        first = written[0].entry
        assert first is not None  # only changes are written
        partition, of = self._partition, self._keys.of
        names = ("audit", "changes", "ids", "epoch", "results", "results-age")
        keys = [self._keys.named(partition, name) for name in names]
        arguments: list[Word] = [
            *(partition, view.accounts.epoch, first.sequence - 1, first.previous, self._keys.channel),
            *(view.accounts.now_us, IDEMPOTENCY_LIFETIME_US, kept_max(self._keys.partitions)),
        ]
        for staged in written:
            entry = staged.entry
            assert entry is not None
            keys += [of(staged.outcome.record.id, kind) for kind in "rgkw"]
            keys += index_keys(self._keys, partition, entry)
            arguments += _change_arguments(staged, entry)
        return keys, arguments

    async def _keep_unchanged(self, unchanged: Sequence[_Staged], now_us: int) -> None:
        """Store the results of changes that changed nothing under their idempotency keys."""
        results, ages = (self._keys.named(self._partition, name) for name in ("results", "results-age"))
        commands: list[Command] = []
        for staged in unchanged:
            kept = field_of(staged.request.actor.id, staged.request.context)
            if kept:
                commands.append(("HSETNX", results, kept, _kept_result(staged)))
                commands.append(("ZADD", ages, "NX", now_us, kept))
        if commands:
            await self._nodes.run(self._partition, commands, self._deadline_s)


def index_keys(keys: RegistryKeys, partition: int, entry: AuditEntry) -> list[str]:
    """The audit indexes that *entry* belongs to."""
    names = (("subject", entry.subject), ("actor", entry.actor), ("action", entry.action))
    return [keys.index(partition, filtered, name) for filtered, name in names]


def rule_broken(rule: bytes) -> RegistryDamagedError:
    """The error of a change that breaks a *rule*, which a script has checked."""
    return RegistryDamagedError(
        f"the registry's script refused the change ({rule.decode()}): verify the audit log, and report a bug"
    )


def _change_arguments(staged: _Staged, entry: AuditEntry) -> list[Word]:
    outcome, stored = staged.outcome, entry.to_stored()
    record = outcome.record
    kept = field_of(staged.request.actor.id, staged.request.context)
    return [
        *(record.id, "deleted" if outcome.is_deleted else record.status.value, record.generation),
        *(stored.sequence, stored.digest, stored.body, staged.stored, search_text(record)),
        canonical_json(list(outcome.claims)),
        canonical_json({secret.id: secret.sealed for secret in outcome.sealed}),
        *(kept, _kept_result(staged) if kept else ""),
    ]


def _staged(index: int, request: ChangeRequest, made: ChangePlan) -> _Staged:
    outcome = made.outcome
    committed = Committed(outcome.record, made.entry, outcome.notices, outcome.is_deleted)
    return _Staged(index, request, outcome, made.stored or "", made.entry, committed)


def _kept_result(staged: _Staged) -> str:
    return kept_result(staged.request.context, stored_commit(staged.committed))


def _where(request: ChangeRequest) -> str:
    return f"integration:{request.command.integration_id}"


def _has_committed(planned: _Round) -> bool:
    return bool(planned.staged) or any(isinstance(result, Committed) for result in planned.results.values())


def _first_entry(made: _Round) -> AuditEntry:
    return next(staged.entry for staged in made.staged if staged.entry is not None)

"""Changes of administrators: committed in partition 0, then fenced in every partition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from sidecar.domain.accounts import Administrator, confirm
from sidecar.domain.audit import AuditEntry, ChainHead
from sidecar.domain.canonical import canonical_json
from sidecar.domain.changes import AdminCommitted, AdminPlan, AdminRequest, plan_administration
from sidecar.stores.redis.limits import Backoff
from sidecar.stores.registry.base import idempotency_mismatch, token_id_used
from sidecar.stores.registry.protocol import IDEMPOTENCY_LIFETIME_US, RegistryError, RegistryTimeoutError
from sidecar.stores.registry.redis import reads
from sidecar.stores.registry.redis.acting_accounts import read_accounts
from sidecar.stores.registry.redis.commits import PAUSE_FIRST_S, PAUSE_MAX_S, index_keys, rule_broken
from sidecar.stores.registry.redis.idempotency import (
    KeyReservations,
    field_of,
    kept_max,
    kept_result,
    result_commands,
    result_of,
)
from sidecar.stores.registry.redis.keys import HOME, RegistryKeys
from sidecar.stores.registry.redis.nodes import Command, Nodes, ReplyLostError, Word, call_of
from sidecar.stores.registry.redis.reads import Reader, all_of
from sidecar.stores.registry.redis.replies import entry_of
from sidecar.stores.registry.redis.scripts import ADMINISTER, FENCE
from sidecar.stores.registry.results import replayed_admin_commit, stored_admin_commit

_WHERE = "administrators"


class Administration:
    """Changes the administrators of a registry."""

    def __init__(self, nodes: Nodes, keys: RegistryKeys, clock_us: Callable[[], int] | None) -> None:
        """*clock_us* replaces the server's clock in tests."""
        self._nodes = nodes
        self._keys = keys
        self._clock_us = clock_us
        self._reservations = KeyReservations(nodes, keys)
        self._turn = asyncio.Lock()

    async def administer(self, request: AdminRequest, deadline_s: float) -> AdminCommitted:
        """
        Make one change; return once every partition refuses changes planned on the former accounts.

        Raises:
            RefusedError: nothing was changed.
            RegistryError: the store failed; see `may_have_happened`.
        """
        change = _Change(self, request, deadline_s)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - monotonic())), self._turn:
                return await change.run()
        except TimeoutError:
            raise RegistryTimeoutError(
                "the registry did not commit the change in time", may_have_happened=change.is_open
            ) from None
        except RegistryError as error:
            error.may_have_happened = error.may_have_happened or change.is_open
            raise


class _Change:
    """One change in progress."""

    def __init__(self, owner: Administration, request: AdminRequest, deadline_s: float) -> None:
        self._owner = owner
        self._nodes = owner._nodes
        self._keys = owner._keys
        self._request = request
        self._deadline_s = deadline_s
        self._reader = Reader(self._nodes, self._keys, deadline_s)
        self._lost: list[AuditEntry] = []
        self._kept = field_of(request.actor.id, request.context) if request.actor is not None else ""
        self.is_open = False
        """The change was sent and may be in force, perhaps not yet in every partition."""

    async def run(self) -> AdminCommitted:
        """Retry until the change is committed; the caller's deadline cancels this."""
        pauses = Backoff(PAUSE_FIRST_S, PAUSE_MAX_S)
        while True:
            committed = await self._try()
            if committed is not None:
                return committed
            await asyncio.sleep(pauses.next_s())

    async def _try(self) -> AdminCommitted | None:
        """Read, plan and commit once; None = another change was first, or a reply was lost: retry."""
        heads = await reads.heads(self._reader)  # the new entry must be later than every entry
        accounts = await read_accounts(self._reader, (), self._owner._clock_us)
        directory = {
            administrator.id: administrator for administrator in await reads.administrators(self._reader)
        }
        lost = await self._find_lost()
        if lost is not None:
            return await self._finish(AdminCommitted(directory[_id_of(lost)], lost), lost.head)
        earlier = await self._earlier(directory, accounts.now_us)
        if earlier is not None:
            return await self._finish(earlier, accounts.head)
        head = accounts.head._replace(at_us=max(head.at_us for head in (*heads, accounts.head)))
        planned = plan_administration(directory, head, self._request, accounts.now_us)
        committed = AdminCommitted(planned.outcome.administrator, planned.entry)
        if planned.stored is None or planned.entry is None:
            return await self._finish(committed, accounts.head)
        if self._kept and not await self._owner._reservations.reserve(
            self._kept, self._request.context, _WHERE, accounts.now_us, self._deadline_s
        ):
            raise idempotency_mismatch()
        if await self._commit(planned, planned.entry, planned.stored, committed, accounts.now_us):
            self._lost.append(planned.entry)  # a failover may still lose the entry
            return await self._finish(committed, planned.entry.head)
        return None

    async def _earlier(self, directory: dict[str, Administrator], now_us: int) -> AdminCommitted | None:
        """The earlier result for the same idempotency key; None = there is none."""
        actor, context = self._request.actor, self._request.context
        if actor is None or not self._kept:
            return None
        confirm(actor, directory.get(actor.id), now_us)
        kept = await self._reader.ask(HOME, *result_commands(self._keys, HOME, self._kept))
        result = result_of(kept[0], kept[1], context, now_us)
        if result is None:
            await self._owner._reservations.check(self._reader, self._kept, context, _WHERE, now_us)
            return None
        return replayed_admin_commit(result)

    async def _find_lost(self) -> AuditEntry | None:
        """The entry of a write whose reply was lost, if it is in the chain."""
        for entry in self._lost:
            at = f"{entry.sequence}-0"
            [found] = await self._reader.ask(HOME, ("XRANGE", self._keys.named(HOME, "audit"), at, at))
            if found and entry_of(HOME, found[0]).digest == entry.to_stored().digest:
                return entry
        return None

    async def _commit(
        self, planned: AdminPlan, entry: AuditEntry, stored: str, committed: AdminCommitted, now_us: int
    ) -> bool:
        names = ("audit", "admins", "admins-at", "tokens", "epoch", "results", "results-age")
        keys = [*(self._keys.named(HOME, name) for name in names), *index_keys(self._keys, HOME, entry)]
        kept = kept_result(self._request.context, stored_admin_commit(committed)) if self._kept else ""
        administrator = planned.outcome.administrator
        arguments: list[Word] = [
            *(entry.sequence - 1, entry.previous, self._keys.channel, now_us, IDEMPOTENCY_LIFETIME_US),
            *(kept_max(self._keys.partitions), administrator.id, administrator.generation, entry.sequence),
            *(entry.to_stored().digest, entry.to_stored().body, stored),
            *(canonical_json(list(planned.outcome.claims)), self._kept, kept),
        ]
        try:
            [(verdict, *details)], _ = await self._nodes.write(
                HOME, [call_of(ADMINISTER, keys, arguments)], self._deadline_s, on_sent=self._sent
            )
        except ReplyLostError:
            self._lost.append(entry)
            return False
        except RegistryError:
            self.is_open = bool(self._lost)  # the server refused this call, or did not receive it
            raise
        if verdict == b"ok":
            return True
        self.is_open = bool(self._lost)
        if verdict == b"claimed":
            raise token_id_used(details[1].decode())
        if verdict == b"guard":
            raise rule_broken(details[1])
        return False

    async def _finish(self, committed: AdminCommitted, head: ChainHead) -> AdminCommitted | None:
        """
        Fence every partition, and return the result with its durability; None = a failover lost the change.

        Each node gets one write, so that its durability is known.
        """
        epoch = committed.entry.sequence if committed.entry is not None else 0
        by_node: dict[object, list[int]] = {}
        for partition in range(self._keys.partitions):
            by_node.setdefault(await self._nodes.address_of(partition), []).append(partition)
        durable = await all_of(*(self._fence(partitions, head, epoch) for partitions in by_node.values()))
        if None in durable:
            return None
        return replace(committed, is_durable=all(durable))

    async def _fence(self, partitions: Sequence[int], head: ChainHead, epoch: int) -> bool | None:
        """Set *epoch* in the partitions of one node; check that partition 0 has *head*."""
        commands: list[Command] = [
            call_of(FENCE, [self._keys.named(partition, "epoch")], [epoch]) for partition in partitions
        ]
        commands.append(("SET", self._keys.named(partitions[0], "settled"), head.sequence))
        is_home = HOME in partitions and head.sequence > 0
        if is_home:
            at = f"{head.sequence}-0"
            commands.append(("XRANGE", self._keys.named(HOME, "audit"), at, at))
        try:
            replies, is_durable = await self._nodes.write(partitions[0], commands, self._deadline_s)
        except ReplyLostError:
            return None
        if is_home and not (replies[-1] and entry_of(HOME, replies[-1][0]).digest == head.digest):
            return None
        return is_durable

    def _sent(self) -> None:
        self.is_open = True


def _id_of(entry: AuditEntry) -> str:
    return entry.subject.removeprefix("administrator:")

"""
Changes of the registry: what is asked, what comes of it, and how far a reader has followed.

`plan` turns a request into all that a store must write, so that every store only has to write it
as a whole: in a transaction, or by a script that compares the head of the chain with the one planned on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.domain.accounts import Administrator, confirm, stored_administrator
from sidecar.domain.administrators import AdminCommand, AdminOutcome, Directory, administer
from sidecar.domain.audit import AuditEntry, ChainHead, next_time_us
from sidecar.domain.cidr import Address
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle.commands import Command
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.lifecycle.outcome import Facts, Notice, Outcome
from sidecar.domain.records import record_digest, stored_text
from sidecar.domain.refusals import Code, GenerationConflictError, refusal
from sidecar.domain.roles import Actor
from sidecar.domain.texts import holds_secret

CONTEXT_LENGTH_MAX = 128
_REVISION = re.compile(r"(0|[1-9][0-9]{0,15})(\.(0|[1-9][0-9]{0,15})){0,1023}")


class Position(NamedTuple):
    """The place of a change: the partition (chain) and its sequence there."""

    partition: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Revision:
    """
    How far a reader has followed the registry: the latest sequence of each partition.

    An embedded registry has one partition.

    >>> Revision((7, 3)).covers(Position(1, 3)), str(Revision((7, 3)))
    (True, '7.3')
    """

    sequences: tuple[int, ...]

    def covers(self, position: Position) -> bool:
        """Whether the change at *position* is included."""
        is_known = position.partition < len(self.sequences)
        return is_known and self.sequences[position.partition] >= position.sequence

    def __str__(self) -> str:
        """One number a partition, with points between."""
        return ".".join(map(str, self.sequences))

    @classmethod
    def parse(cls, text: str) -> Revision:
        """
        Read what `str` wrote.

        Raises:
            ValueError: anything else.
        """
        if not _REVISION.fullmatch(text):
            raise ValueError(f"a revision is numbers with points between, not {text[:80]!a}")
        return cls(tuple(int(number) for number in text.split(".")))


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """
    Where a change comes from: goes on record.

    `source` is the caller's address or 'local'; `request_id` is echoed to the caller. With an
    `idempotency_key` a repeated request gets the first one's result; `fingerprint` is a digest of the
    request by which a different one under the same key is told apart.
    """

    request_id: str
    source: str
    idempotency_key: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """
        Refuse what cannot stand on record.

        Raises:
            InvalidError: too long, not printable ASCII, or in the shape of a secret.
        """
        for name in ("request_id", "source", "idempotency_key", "fingerprint"):
            text: str = getattr(self, name)
            is_plain = text.isascii() and (text.isprintable() or not text) and len(text) <= CONTEXT_LENGTH_MAX
            if not is_plain or (name != "fingerprint" and holds_secret(text)):
                raise refusal(
                    Code.INVALID_VALUE,
                    name,
                    f"{name} must be at most {CONTEXT_LENGTH_MAX} printable ASCII characters and no secret",
                    "send a shorter one, or leave it out",
                )


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """
    One change of an integration, as asked for.

    `expected_generation` None = whatever it is now; 0 = it must not exist.
    """

    command: Command
    actor: Actor
    context: ChangeContext
    expected_generation: int | None = None


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """One change of the administrators, as asked for; `actor` None only to bootstrap."""

    command: AdminCommand
    actor: Actor | None
    context: ChangeContext


@dataclass(frozen=True, slots=True)
class Committed:
    """
    A change that is in the registry, on record and in force.

    `record` is the integration afterwards (of a deleted one what is kept of it); `entry` None = all was so
    already and nothing was written; `is_replay` = this is the result of an earlier request with the same
    idempotency key, whose secret was shown then and is not kept. `is_durable` False = it is on one server of
    the store alone: a failover may lose it.
    """

    record: Integration
    entry: AuditEntry | None
    notices: tuple[Notice, ...] = ()
    is_deleted: bool = False
    is_replay: bool = False
    is_durable: bool = True

    @property
    def generation(self) -> int:
        """Of the record afterwards."""
        return self.record.generation

    @property
    def position(self) -> Position | None:
        """Where in the registry's history it stands; None = nothing was written."""
        return Position(self.entry.chain, self.entry.sequence) if self.entry is not None else None


@dataclass(frozen=True, slots=True)
class AdminCommitted:
    """A change of the administrators that is in the registry and on record; see `Committed`."""

    administrator: Administrator
    entry: AuditEntry | None
    is_replay: bool = False
    is_durable: bool = True


@dataclass(frozen=True, slots=True)
class Current:
    """
    What a store knows at the moment of a change, read in one go.

    `holder` is the account of the acting administrator; `head` is that of the chain that the change will
    be appended to; `addresses_seen` are those of the integration in the last hour.
    """

    record: Integration | None
    is_deleted: bool
    holder: Administrator | None
    head: ChainHead
    addresses_seen: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """
    All that a change writes, as a whole or not at all.

    `stored` is the record as text, and `entry` the audit entry that follows `Current.head`; both None when
    the outcome is no change. What else is written is in `outcome`: ids to claim, secrets to keep.
    """

    outcome: Outcome
    stored: str | None
    entry: AuditEntry | None


@dataclass(frozen=True, slots=True)
class AdminPlan:
    """All that a change of an administrator writes, as a whole or not at all; see `ChangePlan`."""

    outcome: AdminOutcome
    stored: str | None
    entry: AuditEntry | None


def plan(lifecycle: Lifecycle, current: Current, request: ChangeRequest, now_us: int) -> ChangePlan:
    """
    Work out all that *request* writes.

    Raises:
        RefusedError: nothing may be written.
    """
    command = request.command
    actor = confirm(request.actor, current.holder, now_us)
    actor.require(command.action)
    _expect(request, current)
    facts = Facts(current.is_deleted, current.addresses_seen, current.head.at_us)
    outcome = lifecycle.apply(current.record, command, actor, now_us, facts)
    if not outcome.is_change:
        return ChangePlan(outcome, None, None)
    stored = stored_text(outcome.record)
    subject = f"integration:{outcome.record.id}"
    generation = outcome.record.generation
    entry = _entry(current.head, now_us, actor, request, subject, generation, outcome, stored)
    return ChangePlan(outcome, stored, entry)


def plan_administration(
    directory: Directory, head: ChainHead, request: AdminRequest, now_us: int
) -> AdminPlan:
    """
    Work out all that a change of the administrators writes.

    Raises:
        RefusedError: nothing may be written.
    """
    command, actor = request.command, request.actor
    if actor is not None:
        actor = confirm(actor, directory.get(actor.id), now_us)
    outcome = administer(directory, command, actor, now_us, head.at_us)
    if not outcome.is_change:
        return AdminPlan(outcome, None, None)
    stored = stored_administrator(outcome.administrator)
    subject = f"administrator:{outcome.administrator.id}"
    generation = outcome.administrator.generation
    entry = _entry(head, now_us, actor, request, subject, generation, outcome, stored)
    return AdminPlan(outcome, stored, entry)


def _expect(request: ChangeRequest, current: Current) -> None:
    expected = request.expected_generation
    actual = current.record.generation if current.record is not None else 0
    if expected is not None and expected != actual:
        raise GenerationConflictError(request.command.integration_id, expected, actual)


def _entry(
    head: ChainHead,
    now_us: int,
    actor: Actor | None,
    request: ChangeRequest | AdminRequest,
    subject: str,
    generation: int,
    outcome: Outcome | AdminOutcome,
    stored: str,
) -> AuditEntry:
    return AuditEntry(
        chain=head.chain,
        sequence=head.sequence + 1,
        at_us=next_time_us(head.at_us, now_us),
        actor=actor.id if actor is not None else "",
        role=actor.role.value if actor is not None else "",
        token_id=actor.token_id if actor is not None else "",
        action=request.command.word,
        subject=subject,
        generation=generation,
        summary=outcome.summary,
        reason=request.command.reason,
        before=dict(outcome.before),
        after=dict(outcome.after),
        record_digest=record_digest(stored),
        source=request.context.source,
        request_id=request.context.request_id,
        previous=head.digest,
    )


SIDECAR_LIFETIME_US = 10 * 1_000_000
"""A sidecar that was silent for this long is no longer live: two announcements or nine beats may be lost."""
SIDECARS_MAX = 10_000
"""Sidecars that are kept and counted; the share of one in more is nothing."""


class LiveSidecar(NamedTuple):
    """A sidecar that is running: how far it has followed the registry, and when it last said so."""

    id: str
    revision: Revision
    seen_at_us: int


def unconfirmed(sidecars: Iterable[LiveSidecar], position: Position) -> tuple[str, ...]:
    """The sidecars that have not yet confirmed the change at *position*, by id."""
    return tuple(sorted(sidecar.id for sidecar in sidecars if not sidecar.revision.covers(position)))

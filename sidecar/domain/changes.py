"""
Changes of the registry: requests, their results, and the revision up to which a reader has applied them.

`plan` computes everything that a store must write for a request. A store writes it atomically: in a
transaction, or by a script that checks that the head of the chain has not changed since.
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
    """The position of a change: its partition (chain) and its sequence there."""

    partition: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Revision:
    """
    The latest sequence of each partition that a reader has applied; an embedded registry has one partition.

    >>> Revision((7, 3)).covers(Position(1, 3)), str(Revision((7, 3)))
    (True, '7.3')
    """

    sequences: tuple[int, ...]

    def covers(self, position: Position) -> bool:
        """Whether the change at *position* is included."""
        is_known = position.partition < len(self.sequences)
        return is_known and self.sequences[position.partition] >= position.sequence

    def __str__(self) -> str:
        """One number per partition, joined with '.'."""
        return ".".join(map(str, self.sequences))

    @classmethod
    def parse(cls, text: str) -> Revision:
        """
        Parse the result of `str`.

        Raises:
            ValueError: *text* has another form.
        """
        if not _REVISION.fullmatch(text):
            raise ValueError(f"revision is {text[:80]!a}; it must be numbers joined with '.'")
        return cls(tuple(int(number) for number in text.split(".")))


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """
    The origin of a change, which the audit log records.

    `source` is the caller's address or 'local'; the caller gets `request_id` back. A request with the
    `idempotency_key` of an earlier request gets that request's result; `fingerprint` is a digest of the
    request, which detects that a different request reuses the key.
    """

    request_id: str
    source: str
    idempotency_key: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """
        Reject values that must not be recorded.

        Raises:
            InvalidError: too long, not printable ASCII, or in the form of a secret.
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
    The request for one change of an integration.

    `expected_generation` None = any generation; 0 = the integration must not exist.
    """

    command: Command
    actor: Actor
    context: ChangeContext
    expected_generation: int | None = None


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """The request for one change of the administrators; `actor` is None only for `Bootstrap`."""

    command: AdminCommand
    actor: Actor | None
    context: ChangeContext


@dataclass(frozen=True, slots=True)
class Committed:
    """
    The result of a change that the registry has committed.

    `record` is the integration after the change (for a deletion, what is kept of it); `entry` None = nothing
    had to be changed or written. `is_replay` = this is the result of an earlier request with the same
    idempotency key; its secret is not stored and cannot be shown again. `is_durable` False = only one server
    of the store has the change: a failover may lose it.
    """

    record: Integration
    entry: AuditEntry | None
    notices: tuple[Notice, ...] = ()
    is_deleted: bool = False
    is_replay: bool = False
    is_durable: bool = True

    @property
    def generation(self) -> int:
        """The generation of the record after the change."""
        return self.record.generation

    @property
    def position(self) -> Position | None:
        """The position of the change in the registry's history; None = nothing was written."""
        return Position(self.entry.chain, self.entry.sequence) if self.entry is not None else None


@dataclass(frozen=True, slots=True)
class AdminCommitted:
    """The result of a committed change of the administrators; see `Committed`."""

    administrator: Administrator
    entry: AuditEntry | None
    is_replay: bool = False
    is_durable: bool = True


@dataclass(frozen=True, slots=True)
class Current:
    """
    The state of the store at the time of a change, read atomically.

    `holder` is the account of the acting administrator; `head` is the head of the change's chain;
    `addresses_seen` are the integration's client addresses of the last hour.
    """

    record: Integration | None
    is_deleted: bool
    holder: Administrator | None
    head: ChainHead
    addresses_seen: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """
    Everything that a change writes, atomically.

    `stored` is the record as text, and `entry` the audit entry after `Current.head`; both are None if the
    outcome is no change. `outcome` has the rest: ids to claim and secrets to store.
    """

    outcome: Outcome
    stored: str | None
    entry: AuditEntry | None


@dataclass(frozen=True, slots=True)
class AdminPlan:
    """Everything that a change of an administrator writes, atomically; see `ChangePlan`."""

    outcome: AdminOutcome
    stored: str | None
    entry: AuditEntry | None


def plan(lifecycle: Lifecycle, current: Current, request: ChangeRequest, now_us: int) -> ChangePlan:
    """
    Return everything that *request* writes.

    Raises:
        RefusedError: the request is refused; nothing may be written.
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
    Return everything that a change of the administrators writes.

    Raises:
        RefusedError: the request is refused; nothing may be written.
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
        action=request.command.action_name,
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
"""Silence after which a sidecar counts as down: two announcements or nine heartbeats may be lost."""
SIDECARS_MAX = 10_000
"""Maximum number of sidecars that are tracked."""


class LiveSidecar(NamedTuple):
    """A running sidecar: the revision that it has applied, and when it last announced the revision."""

    id: str
    revision: Revision
    seen_at_us: int


def unconfirmed(sidecars: Iterable[LiveSidecar], position: Position) -> tuple[str, ...]:
    """Return the ids of the sidecars that have not confirmed the change at *position*, sorted."""
    return tuple(sorted(sidecar.id for sidecar in sidecars if not sidecar.revision.covers(position)))

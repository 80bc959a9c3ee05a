"""
Compares a declarative file with a registry, and plans the commands that apply the file.

A key that the file omits has its default, as when a sidecar decides by the file itself. Exceptions are
`integrations.Details` and `status`: without the key they keep their value, so that a file from before an
incident cannot lift a suspension. A temporary raise, webhook secrets and the history of suspensions cannot be
declared.

The rules of `domain.lifecycle` check every planned command in sequence, so a difference shows in advance what
would be refused. Commands that narrow access come first and those that widen it last: a plan that stops in
the middle permits less, not more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from sidecar.domain.canonical import Json
from sidecar.domain.effective import is_invalidated, is_live, raise_in_force
from sidecar.domain.enforcement import rule_names
from sidecar.domain.integrations import DETAILS, Credential, Integration, Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.limits import SCOPES_MAX
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.refusals import Code, Problem, RefusedError
from sidecar.domain.roles import Actor

_SCALARS = ("name", "status", *DETAILS, "rate_limit_rpm", "burst", "on_store_error")


@dataclass(frozen=True, slots=True)
class Declaration:
    """An integration as declared in a file; `keys` are the keys that the file contains."""

    record: Integration
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class ComparisonContext:
    """
    The parameters of a comparison.

    The audit log records `reason` with every change. `has_prune` = remove what the file does not name.
    """

    lifecycle: Lifecycle
    actor: Actor
    now_us: int
    reason: str
    has_prune: bool = False


class DifferenceKind(Enum):
    """What a plan does with an integration."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"
    NONE = "none"


class FieldChange(NamedTuple):
    """
    One value before and after a change; None = absent.

    In a field with members (`scopes`, `ip_allowlist`, `credentials`) each added or removed member is one
    change. Names that end in `_us` are times.
    """

    field: str
    before: Json
    after: Json


class PlannedCommand(NamedTuple):
    """A command, and the generation of the record for which it was planned; 0 = no record."""

    command: c.Command
    expected_generation: int


class Refusal(NamedTuple):
    """A declaration that cannot be applied. `action_name` is that of the refused command, '' = none."""

    action_name: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Difference:
    """
    The difference of one integration.

    `steps` are the commands that the rules accept, in order; `fields` are the changes that they make;
    `refusals` are the declarations that cannot be applied; `remarks` are hints for the reader.
    """

    integration_id: str
    name: str
    kind: DifferenceKind
    steps: tuple[PlannedCommand, ...] = ()
    fields: tuple[FieldChange, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """
    All differences between a file and a registry, in the order of the file; removals come last.

    Integrations without a difference and without a remark are only counted. `kept_integrations` and
    `kept_credentials` are not in the file, and are kept because pruning was not requested.
    """

    differences: tuple[Difference, ...]
    unchanged: int = 0
    kept_integrations: tuple[str, ...] = ()
    kept_credentials: tuple[str, ...] = ()

    def count(self, kind: DifferenceKind) -> int:
        """Return the number of integrations with a difference of this *kind*."""
        return sum(difference.kind is kind for difference in self.differences)

    @property
    def refused(self) -> int:
        """The number of integrations with refusals."""
        return sum(bool(difference.refusals) for difference in self.differences)

    @property
    def steps(self) -> int:
        """The number of commands."""
        return sum(len(difference.steps) for difference in self.differences)


def compare(
    declarations: Sequence[Declaration], held: Iterable[Integration], context: ComparisonContext
) -> ApplyPlan:
    """Return the plan that makes a registry with *held* match *declarations*."""
    records = {record.id: record for record in held}
    owners = {credential.id: record.id for record in records.values() for credential in record.credentials}
    differences: list[Difference] = []
    kept_credentials: list[str] = []
    unchanged = 0
    for declaration in declarations:
        record = records.pop(declaration.record.id, None)
        difference = differ(declaration, record, context, owners)
        if record is not None and not context.has_prune:
            undeclared = _undeclared(declaration.record, record, context.now_us)
            kept_credentials += (credential.id for credential in undeclared)
        unchanged += difference.kind is DifferenceKind.NONE and not difference.refusals
        if difference.kind is not DifferenceKind.NONE or difference.refusals or difference.remarks:
            differences.append(difference)
    left = [records[id] for id in sorted(records)]
    if context.has_prune:
        return ApplyPlan((*differences, *(_removal(record, context) for record in left)), unchanged)
    kept = tuple(record.id for record in left)
    return ApplyPlan(tuple(differences), unchanged, kept, tuple(kept_credentials))


def differ(
    declaration: Declaration,
    held: Integration | None,
    context: ComparisonContext,
    owners: Mapping[str, str] | None = None,
) -> Difference:
    """
    Return the difference that makes *held* match *declaration*; *held* None = the integration does not exist.

    *owners* maps credential ids to integrations: a registry never uses a credential id twice.
    """
    declared = declaration.record
    refusals = list(_id_conflicts(declared, held, owners or {}))
    conflicting = {refusal.problem.field for refusal in refusals}
    possible = declared
    if conflicting:
        kept = tuple(
            credential
            for credential in declared.credentials
            if _credential_field(credential.id) not in conflicting
        )
        possible = replace(declared, credentials=kept)
    commands = (
        _creation(possible, context) if held is None else _changes(declaration, possible, held, context)
    )
    final, steps, refused = _check_commands(commands, held, context)
    refusals += [*refused, *_ended_refusals(declared, held, final, steps, conflicting)]
    kind = DifferenceKind.NONE if not steps else DifferenceKind.ADD if held is None else DifferenceKind.CHANGE
    return Difference(
        declared.id,
        declared.name,
        kind,
        steps,
        tuple(_field_changes(held, final)) if steps and final is not None else (),
        tuple(refusals),
        tuple(_remarks(declaration, held, final, context.now_us)),
    )


def _creation(declared: Integration, context: ComparisonContext) -> Iterator[c.Command]:
    """Yield the commands that create *declared*; credentials come before a suspension, which ends them."""
    on = {"integration_id": declared.id, "reason": context.reason}
    scopes = [str(scope) for scope in sorted(declared.scopes)]
    yield c.CreateIntegration(
        **on,
        name=declared.name,
        **{name: getattr(declared, name) for name in DETAILS},
        scopes=tuple(scopes[:SCOPES_MAX]),
        rate_limit_rpm=declared.rate_limit_rpm,
        burst=declared.burst,
        allowlist=tuple(map(str, dict.fromkeys(declared.ip_allowlist))),
        credentials=tuple(map(_new_credential, _missing(declared, None, context.now_us))),
        on_store_error=_policy_text(declared.on_store_error),
        shadow=tuple(rule_names(declared.shadow)),
    )
    if declared.status is Status.SUSPENDED:
        yield c.Suspend(**on)
    if declared.ip_allowlist and not declared.is_allowlist_enabled:
        yield c.DisableAllowlist(**on)
    for batch in _batches(scopes[SCOPES_MAX:]):
        yield c.AddScopes(**on, scopes=batch)


def _changes(
    declaration: Declaration, declared: Integration, held: Integration, context: ComparisonContext
) -> Iterator[c.Command]:
    """Yield the commands that make *held* match *declared*, narrowing ones before widening ones."""
    now_us = context.now_us
    on: dict[str, Any] = {"integration_id": declared.id, "reason": context.reason}
    changes_status = "status" in declaration.keys and declared.status is not held.status
    if changes_status and declared.status is Status.SUSPENDED:
        yield c.Suspend(**on)
    if declared.shadow != held.shadow:
        # First, so that a new rule that is declared in shadow refuses nobody for a moment.
        yield c.SetShadow(**on, shadow=tuple(rule_names(declared.shadow)))
    undeclared = _undeclared(declaration.record, held) if context.has_prune else ()
    for credential in (*_declared_expired(declared, held, now_us), *undeclared):
        yield c.RevokeCredential(**on, credential_id=credential.id)
    for batch in _batches([str(scope) for scope in sorted(held.scopes - declared.scopes)]):
        yield c.RemoveScopes(**on, scopes=batch)
    yield from _allowlist(declared, held, on)
    if (declared.rate_limit_rpm, declared.burst) != (held.rate_limit_rpm, held.burst):
        yield c.SetRateLimit(**on, rate_limit_rpm=declared.rate_limit_rpm, burst=declared.burst)
    if declared.on_store_error is not held.on_store_error:
        yield c.SetOnStoreError(**on, on_store_error=_policy_text(declared.on_store_error))
    yield from _details(declaration, held, on)
    if not (changes_status and declared.status is Status.SUSPENDED):
        yield from _expiries(declared, held, on, now_us)
    for credential in _missing(declared, held, now_us):
        yield c.IssueCredential(**on, credential=_new_credential(credential))
    for batch in _batches([str(scope) for scope in sorted(declared.scopes - held.scopes)]):
        yield c.AddScopes(**on, scopes=batch)
    if changes_status and declared.status is Status.ACTIVE:
        yield c.Reactivate(**on)


def _allowlist(declared: Integration, held: Integration, on: Mapping[str, Any]) -> Iterator[c.Command]:
    """Yield the commands for the allowlist; an allowlist without entries is off."""
    wanted = tuple(dict.fromkeys(declared.ip_allowlist))
    is_wanted_on = bool(wanted) and declared.is_allowlist_enabled
    if held.ip_allowlist and held.is_allowlist_enabled and not is_wanted_on:
        yield c.DisableAllowlist(**on)
    if set(wanted) != set(held.ip_allowlist):
        yield c.SetAllowlist(**on, entries=tuple(map(str, wanted)))
    if is_wanted_on and not held.is_allowlist_enabled:
        yield c.EnableAllowlist(**on)
    if wanted and not is_wanted_on and not held.ip_allowlist and held.is_allowlist_enabled:
        yield c.DisableAllowlist(**on)


def _details(declaration: Declaration, held: Integration, on: Mapping[str, str]) -> Iterator[c.Command]:
    declared = declaration.record
    changed = {
        name: getattr(declared, name)
        for name in ("name", *DETAILS)
        if name in declaration.keys and getattr(declared, name) != getattr(held, name)
    }
    if changed:
        yield c.EditDetails(**on, texts=changed)


def _expiries(
    declared: Integration, held: Integration, on: Mapping[str, str], now_us: int
) -> Iterator[c.Command]:
    """Yield the commands that change expiry times; a credential that a suspension invalidated is skipped."""
    wanted = {credential.id: credential for credential in declared.credentials}
    for credential in held.credentials:
        other = wanted.get(credential.id)
        if other is None or other.expires_at_us == credential.expires_at_us or _has_expired(other, now_us):
            continue
        if not is_invalidated(held, credential):
            yield c.SetCredentialExpiry(**on, credential_id=credential.id, expires_at_us=other.expires_at_us)


def _check_commands(
    commands: Iterable[c.Command], held: Integration | None, context: ComparisonContext
) -> tuple[Integration | None, tuple[PlannedCommand, ...], list[Refusal]]:
    """Return the record after the accepted commands, these commands, and the refusals of the others."""
    record = held
    steps: list[PlannedCommand] = []
    refusals: list[Refusal] = []
    for command in commands:
        try:
            outcome = context.lifecycle.apply(record, command, context.actor, context.now_us)
        except RefusedError as error:
            refusals += [Refusal(command.action_name, problem) for problem in error.problems]
            if record is None:
                break
            continue
        if outcome.is_change:
            steps.append(PlannedCommand(command, record.generation if record is not None else 0))
            record = outcome.record
    return record, tuple(steps), refusals


def _removal(record: Integration, context: ComparisonContext) -> Difference:
    command = c.DeleteIntegration(integration_id=record.id, reason=context.reason)
    _, _, refusals = _check_commands((command,), record, context)
    steps = () if refusals else (PlannedCommand(command, record.generation),)
    kind = DifferenceKind.REMOVE if steps else DifferenceKind.NONE
    return Difference(record.id, record.name, kind, steps, refusals=tuple(refusals))


def _missing(declared: Integration, held: Integration | None, now_us: int) -> list[Credential]:
    """Return the credentials to issue, without those that have expired."""
    known = {credential.id for credential in held.credentials} if held is not None else set()
    return [
        credential
        for credential in declared.credentials
        if credential.id not in known and not _has_expired(credential, now_us)
    ]


def _declared_expired(declared: Integration, held: Integration, now_us: int) -> list[Credential]:
    """Return the live credentials of *held* that are declared as expired."""
    expired = {credential.id for credential in declared.credentials if _has_expired(credential, now_us)}
    return [
        credential
        for credential in held.credentials
        if credential.id in expired and is_live(held, credential, now_us)
    ]


def _undeclared(declared: Integration, held: Integration, live_at_us: int | None = None) -> list[Credential]:
    """Return the credentials of *held* that are not declared; with *live_at_us* only those live then."""
    named = {credential.id for credential in declared.credentials}
    return [
        credential
        for credential in held.credentials
        if credential.id not in named and (live_at_us is None or is_live(held, credential, live_at_us))
    ]


def _id_conflicts(
    declared: Integration, held: Integration | None, owners: Mapping[str, str]
) -> Iterator[Refusal]:
    """Refuse credentials whose id belongs to another key or to another integration."""
    known = {credential.id: credential for credential in held.credentials} if held is not None else {}
    remedy = "generate a new API key with 'sidecar keys new' and declare it"
    for credential in declared.credentials:
        other, owner = known.get(credential.id), owners.get(credential.id, declared.id)
        if other is not None and other.digest != credential.digest:
            message = f"credential {credential.id} has another digest in the registry; ids are never reused"
        elif owner != declared.id:
            message = f"credential id {credential.id} belongs to {owner!r}; ids are never reused"
        else:
            continue
        yield Refusal("", Problem(Code.CREDENTIAL_ID_USED, _credential_field(credential.id), message, remedy))


def _ended_refusals(
    declared: Integration,
    held: Integration | None,
    final: Integration | None,
    steps: Sequence[PlannedCommand],
    conflicting: set[str],
) -> Iterator[Refusal]:
    """Refuse declared credentials that expired or that a suspension invalidated."""
    if held is None or final is None:
        return
    revoked = {step.command.credential_id for step in steps if isinstance(step.command, c.RevokeCredential)}
    lost = (
        {credential.id for credential in held.credentials}
        - {credential.id for credential in final.credentials}
        - revoked
    )
    if final.status is Status.ACTIVE:
        lost |= {credential.id for credential in final.credentials if is_invalidated(final, credential)}
    for credential in declared.credentials:
        field = _credential_field(credential.id)
        if credential.id in lost and field not in conflicting:
            message = f"credential {credential.id} expired or was invalidated by a suspension, permanently"
            yield Refusal("", Problem(Code.CREDENTIAL_ENDED, field, message, "remove it from the file"))


def _remarks(
    declaration: Declaration, held: Integration | None, final: Integration | None, now_us: int
) -> Iterator[str]:
    declared = declaration.record
    if held is None and declared.status is Status.SUSPENDED and declared.credentials:
        yield "the integration is created suspended, so its credentials are permanently invalid"
    if held is not None and held.status is Status.SUSPENDED and "status" not in declaration.keys:
        yield "the integration stays suspended, because the file has no key 'status' for it"
    had_raise = held is not None and raise_in_force(held, now_us) is not None
    if had_raise and final is not None and final.limit_raise is None:
        yield "the change of the limit ends the temporary raise"
    known = {credential.id for credential in held.credentials} if held is not None else set()
    expired = [
        credential.id
        for credential in declared.credentials
        if credential.id not in known and _has_expired(credential, now_us)
    ]
    if expired:
        yield f"not issued, because expired: {', '.join(expired)}"


def _field_changes(held: Integration | None, final: Integration) -> Iterator[FieldChange]:
    """Yield the changes of declarable fields; a new record is compared with the defaults."""
    before = held if held is not None else Integration(id=final.id, name="-")
    for name in _SCALARS:
        old, new = getattr(before, name), getattr(final, name)
        if old != new:
            yield FieldChange(name, None if held is None else _json(old), _json(new))
    yield from _members("shadow", rule_names(before.shadow), rule_names(final.shadow))
    yield from _members("scopes", sorted(map(str, before.scopes)), sorted(map(str, final.scopes)))
    yield from _members("ip_allowlist", map(str, before.ip_allowlist), map(str, final.ip_allowlist))
    # New entries turn the allowlist on, so next to them only 'off' is a change.
    was_on = before.is_allowlist_enabled if before.ip_allowlist else True
    if final.ip_allowlist and was_on is not final.is_allowlist_enabled:
        yield FieldChange("is_allowlist_enabled", None if held is None else was_on, not was_on)
    ends = {credential.id: credential.expires_at_us for credential in before.credentials}
    yield from _members("credentials", ends, (credential.id for credential in final.credentials))
    for credential in final.credentials:
        if credential.id in ends and ends[credential.id] != credential.expires_at_us:
            yield FieldChange(
                f"credentials.{credential.id}.expires_at_us", ends[credential.id], credential.expires_at_us
            )


def _members(field: str, before: Iterable[str], after: Iterable[str]) -> Iterator[FieldChange]:
    old, new = dict.fromkeys(before), dict.fromkeys(after)
    yield from (FieldChange(field, member, None) for member in old if member not in new)
    yield from (FieldChange(field, None, member) for member in new if member not in old)


def _json(value: object) -> Json:
    if isinstance(value, Enum):
        return str(value.value)
    assert value is None or isinstance(value, str | int)
    return value


def _policy_text(policy: Enum | None) -> str | None:
    return str(policy.value) if policy is not None else None


def _batches(scopes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Split *scopes* into the batches that one command may name."""
    for first in range(0, len(scopes), SCOPES_MAX):
        yield tuple(scopes[first : first + SCOPES_MAX])


def _new_credential(credential: Credential) -> c.NewCredential:
    return c.NewCredential(credential.id, credential.digest, credential.expires_at_us)


def _has_expired(credential: Credential, now_us: int) -> bool:
    return credential.expires_at_us is not None and credential.expires_at_us <= now_us


def _credential_field(credential_id: str) -> str:
    """Return the name of a credential in messages."""
    return f"credentials ({credential_id})"

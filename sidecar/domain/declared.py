"""
From what a file declares to the commands that make a registry hold it, and what would differ.

What a file leaves out has its default, as when a sidecar decides by the file itself. Four things are left as
they are instead: the details `contact`, `owner` and `third_party_manager`, and `status`, so that a
file from before an incident cannot lift a suspension. A temporary raise, webhook secrets and the history
of suspensions are not declared at all.

Every command is tried here by the rules of `domain.lifecycle`, one upon the other, so a difference tells
beforehand what would be refused. Narrowing comes first and widening last: a plan that stops in
the middle leaves less open, not more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from sidecar.domain.canonical import Json
from sidecar.domain.effective import is_invalidated, is_live, raise_in_force
from sidecar.domain.integrations import Credential, Integration, Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.limits import SCOPES_MAX
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.refusals import Code, Problem, RefusedError
from sidecar.domain.roles import Actor

DETAILS = ("contact", "owner", "third_party_manager")
_SCALARS = ("name", "status", *DETAILS, "rate_limit_rpm", "burst", "on_store_error")


@dataclass(frozen=True, slots=True)
class Declaration:
    """An integration as a file has it; `keys` are those that the file writes, whatever their values."""

    record: Integration
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Terms:
    """
    What a comparison goes by.

    `reason` goes on record with every change. `has_prune`: what the file does not name is ended, too.
    """

    lifecycle: Lifecycle
    actor: Actor
    now_us: int
    reason: str
    has_prune: bool = False


class DifferenceKind(Enum):
    """What happens to an integration."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"
    NONE = "none"


class FieldChange(NamedTuple):
    """
    One value before and after; None = not there.

    Of a field with members (`scopes`, `ip_allowlist`, `credentials`) each member that comes or goes is one
    change. Names that end in `_us` are moments.
    """

    field: str
    before: Json
    after: Json


class PlannedCommand(NamedTuple):
    """A command, and the generation of the record that it was planned on; 0 = there is none."""

    command: c.Command
    expected_generation: int


class Refusal(NamedTuple):
    """What is declared and cannot be, and what to do. `word` is the command's, '' = no command does it."""

    word: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Difference:
    """
    What differs for one integration.

    `steps` are the commands that the rules accept, in their order; `fields` is what they change;
    `refusals` are what is declared all the same; `remarks` is what a reader should know.
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
    All that differs between a file and a registry, in the order of the file; what is removed comes last.

    Integrations without a difference and without a remark are only counted. `kept_integrations` and
    `kept_credentials` are not in the file, and stay because they were not to be pruned.
    """

    differences: tuple[Difference, ...]
    unchanged: int = 0
    kept_integrations: tuple[str, ...] = ()
    kept_credentials: tuple[str, ...] = ()

    def count(self, kind: DifferenceKind) -> int:
        """How many integrations are to be added, changed or removed."""
        return sum(difference.kind is kind for difference in self.differences)

    @property
    def refused(self) -> int:
        """Integrations for which something is declared that cannot be."""
        return sum(bool(difference.refusals) for difference in self.differences)

    @property
    def steps(self) -> int:
        """Commands in all."""
        return sum(len(difference.steps) for difference in self.differences)


def compare(declarations: Sequence[Declaration], held: Iterable[Integration], terms: Terms) -> ApplyPlan:
    """What must be done so that a registry with *held* is as *declarations* say."""
    records = {record.id: record for record in held}
    owners = {credential.id: record.id for record in records.values() for credential in record.credentials}
    differences: list[Difference] = []
    kept_credentials: list[str] = []
    unchanged = 0
    for declaration in declarations:
        record = records.pop(declaration.record.id, None)
        difference = differ(declaration, record, terms, owners)
        if record is not None and not terms.has_prune:
            unnamed = _unnamed(declaration.record, record, terms.now_us)
            kept_credentials += (credential.id for credential in unnamed)
        unchanged += difference.kind is DifferenceKind.NONE and not difference.refusals
        if difference.kind is not DifferenceKind.NONE or difference.refusals or difference.remarks:
            differences.append(difference)
    left = [records[id] for id in sorted(records)]
    if terms.has_prune:
        return ApplyPlan((*differences, *(_removal(record, terms) for record in left)), unchanged)
    kept = tuple(record.id for record in left)
    return ApplyPlan(tuple(differences), unchanged, kept, tuple(kept_credentials))


def differ(
    declaration: Declaration, held: Integration | None, terms: Terms, owners: Mapping[str, str] | None = None
) -> Difference:
    """
    What must be done so that *held* is as *declaration* says; None = there is no such integration.

    *owners* are the integrations that have a credential, by its id: an id is used once in a registry's life.
    """
    declared = declaration.record
    refusals = list(_impossible(declared, held, terms, owners or {}))
    barred = {refusal.problem.field for refusal in refusals}
    possible = declared
    if barred:
        kept = tuple(credential for credential in declared.credentials if _place(credential.id) not in barred)
        possible = replace(declared, credentials=kept)
    commands = _creation(possible, terms) if held is None else _changes(declaration, possible, held, terms)
    final, steps, refused = _tried(commands, held, terms)
    refusals += [*refused, *_not_brought_back(declared, held, final, steps, barred)]
    kind = DifferenceKind.NONE if not steps else DifferenceKind.ADD if held is None else DifferenceKind.CHANGE
    return Difference(
        declared.id,
        declared.name,
        kind,
        steps,
        tuple(_field_changes(held, final)) if steps and final is not None else (),
        tuple(refusals),
        tuple(_remarks(declaration, held, final, terms.now_us)),
    )


def _creation(declared: Integration, terms: Terms) -> Iterator[c.Command]:
    """Commands that make it. A suspended one gets its credentials first, so that they never work."""
    on = {"integration_id": declared.id, "reason": terms.reason}
    scopes = [str(scope) for scope in sorted(declared.scopes)]
    yield c.CreateIntegration(
        **on,
        name=declared.name,
        contact=declared.contact,
        owner=declared.owner,
        third_party_manager=declared.third_party_manager,
        scopes=tuple(scopes[:SCOPES_MAX]),
        rate_limit_rpm=declared.rate_limit_rpm,
        burst=declared.burst,
        allowlist=tuple(map(str, dict.fromkeys(declared.ip_allowlist))),
        credentials=tuple(map(_new_credential, _missing(declared, None, terms.now_us))),
        on_store_error=_word(declared.on_store_error),
    )
    if declared.status is Status.SUSPENDED:
        yield c.Suspend(**on)
    if declared.ip_allowlist and not declared.is_allowlist_enabled:
        yield c.DisableAllowlist(**on)
    for group in _groups(scopes[SCOPES_MAX:]):
        yield c.AddScopes(**on, scopes=group)


def _changes(
    declaration: Declaration, declared: Integration, held: Integration, terms: Terms
) -> Iterator[c.Command]:
    """Commands that make *held* as *declared*, what narrows before what widens."""
    now_us = terms.now_us
    on = {"integration_id": declared.id, "reason": terms.reason}
    says_status = "status" in declaration.keys and declared.status is not held.status
    if says_status and declared.status is Status.SUSPENDED:
        yield c.Suspend(**on)
    unnamed = _unnamed(declaration.record, held) if terms.has_prune else ()
    for credential in (*_ended(declared, held, now_us), *unnamed):
        yield c.RevokeCredential(**on, credential_id=credential.id)
    for group in _groups([str(scope) for scope in sorted(held.scopes - declared.scopes)]):
        yield c.RemoveScopes(**on, scopes=group)
    yield from _allowlist(declared, held, on)
    if (declared.rate_limit_rpm, declared.burst) != (held.rate_limit_rpm, held.burst):
        yield c.SetRateLimit(**on, rate_limit_rpm=declared.rate_limit_rpm, burst=declared.burst)
    if declared.on_store_error is not held.on_store_error:
        yield c.SetOnStoreError(**on, on_store_error=_word(declared.on_store_error))
    yield from _details(declaration, held, on)
    if not (says_status and declared.status is Status.SUSPENDED):
        yield from _expiries(declared, held, on, now_us)
    for credential in _missing(declared, held, now_us):
        yield c.IssueCredential(**on, credential=_new_credential(credential))
    for group in _groups([str(scope) for scope in sorted(declared.scopes - held.scopes)]):
        yield c.AddScopes(**on, scopes=group)
    if says_status and declared.status is Status.ACTIVE:
        yield c.Reactivate(**on)


def _allowlist(declared: Integration, held: Integration, on: Mapping[str, str]) -> Iterator[c.Command]:
    """An allowlist without entries is off, whatever else is said of it."""
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
    given = {
        name: getattr(declared, name)
        for name in ("name", *DETAILS)
        if name in declaration.keys and getattr(declared, name) != getattr(held, name)
    }
    if given:
        yield c.EditDetails(**on, **given)


def _expiries(
    declared: Integration, held: Integration, on: Mapping[str, str], now_us: int
) -> Iterator[c.Command]:
    """Ends that are to be moved; what a suspension invalidated never works again, whenever it ends."""
    wanted = {credential.id: credential for credential in declared.credentials}
    for credential in held.credentials:
        other = wanted.get(credential.id)
        if other is None or other.expires_at_us == credential.expires_at_us or _has_expired(other, now_us):
            continue
        if not is_invalidated(held, credential):
            yield c.SetCredentialExpiry(**on, credential_id=credential.id, expires_at_us=other.expires_at_us)


def _tried(
    commands: Iterable[c.Command], held: Integration | None, terms: Terms
) -> tuple[Integration | None, tuple[PlannedCommand, ...], list[Refusal]]:
    """The record after the commands that the rules accept, those commands, and the refusals."""
    record = held
    steps: list[PlannedCommand] = []
    refusals: list[Refusal] = []
    for command in commands:
        try:
            outcome = terms.lifecycle.apply(record, command, terms.actor, terms.now_us)
        except RefusedError as error:
            refusals += [Refusal(command.word, problem) for problem in error.problems]
            if record is None:
                break
            continue
        if outcome.is_change:
            steps.append(PlannedCommand(command, record.generation if record is not None else 0))
            record = outcome.record
    return record, tuple(steps), refusals


def _removal(record: Integration, terms: Terms) -> Difference:
    command = c.DeleteIntegration(integration_id=record.id, reason=terms.reason)
    _, _, refusals = _tried((command,), record, terms)
    steps = () if refusals else (PlannedCommand(command, record.generation),)
    kind = DifferenceKind.REMOVE if steps else DifferenceKind.NONE
    return Difference(record.id, record.name, kind, steps, refusals=tuple(refusals))


def _missing(declared: Integration, held: Integration | None, now_us: int) -> list[Credential]:
    """Credentials to issue; one that has expired would not work, so it may as well not be there."""
    known = {credential.id for credential in held.credentials} if held is not None else set()
    return [
        credential
        for credential in declared.credentials
        if credential.id not in known and not _has_expired(credential, now_us)
    ]


def _ended(declared: Integration, held: Integration, now_us: int) -> list[Credential]:
    """Credentials that work in the registry though they are declared as expired."""
    expired = {credential.id for credential in declared.credentials if _has_expired(credential, now_us)}
    return [
        credential
        for credential in held.credentials
        if credential.id in expired and is_live(held, credential, now_us)
    ]


def _unnamed(declared: Integration, held: Integration, live_at_us: int | None = None) -> list[Credential]:
    """Credentials of *held* that are not declared; with *live_at_us* only those that work then."""
    named = {credential.id for credential in declared.credentials}
    return [
        credential
        for credential in held.credentials
        if credential.id not in named and (live_at_us is None or is_live(held, credential, live_at_us))
    ]


def _impossible(
    declared: Integration, held: Integration | None, terms: Terms, owners: Mapping[str, str]
) -> Iterator[Refusal]:
    """Credentials whose id stands for another key, or for another integration's."""
    known = {credential.id: credential for credential in held.credentials} if held is not None else {}
    remedy = "generate a new API key with 'sidecar keys new' and declare that"
    for credential in declared.credentials:
        other, owner = known.get(credential.id), owners.get(credential.id, declared.id)
        if other is not None and other.digest != credential.digest:
            message = f"credential {credential.id} has another digest in the registry, and an id is used once"
        elif owner != declared.id:
            message = f"credential id {credential.id} belongs to {owner!r}, and an id is used once"
        else:
            continue
        yield Refusal("", Problem(Code.CREDENTIAL_ID_USED, _place(credential.id), message, remedy))


def _not_brought_back(
    declared: Integration,
    held: Integration | None,
    final: Integration | None,
    steps: Sequence[PlannedCommand],
    barred: set[str],
) -> Iterator[Refusal]:
    """Declared credentials that had ended: those that the record loses on the way, or keeps in vain."""
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
        if credential.id in lost and _place(credential.id) not in barred:
            message = f"credential {credential.id} has ended for ever, by a suspension or by its expiry"
            problem = Problem(
                Code.CREDENTIAL_ENDED, _place(credential.id), message, "take it out of the file"
            )
            yield Refusal("", problem)


def _remarks(
    declaration: Declaration, held: Integration | None, final: Integration | None, now_us: int
) -> Iterator[str]:
    declared = declaration.record
    if held is None and declared.status is Status.SUSPENDED and declared.credentials:
        yield "it is suspended, so its credentials are invalid from the start and for ever"
    if held is not None and held.status is Status.SUSPENDED and "status" not in declaration.keys:
        yield "it is suspended and stays so, because the file does not write its 'status'"
    had_raise = held is not None and raise_in_force(held, now_us) is not None
    if had_raise and final is not None and final.limit_raise is None:
        yield "the change of its limit ends the temporary raise"
    known = {credential.id for credential in held.credentials} if held is not None else set()
    expired = [
        credential.id
        for credential in declared.credentials
        if credential.id not in known and _has_expired(credential, now_us)
    ]
    if expired:
        yield f"not issued, because it has expired already: {', '.join(expired)}"


def _field_changes(held: Integration | None, final: Integration) -> Iterator[FieldChange]:
    """What differs between two records in what can be declared; a new one is held against all defaults."""
    before = held if held is not None else Integration(id=final.id, name="-")
    for name in _SCALARS:
        one, other = getattr(before, name), getattr(final, name)
        if one != other:
            yield FieldChange(name, None if held is None else _json(one), _json(other))
    yield from _members("scopes", sorted(map(str, before.scopes)), sorted(map(str, final.scopes)))
    yield from _members("ip_allowlist", map(str, before.ip_allowlist), map(str, final.ip_allowlist))
    # Entries turn it on, so beside new ones only that it is off is worth a word.
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


def _word(policy: Enum | None) -> str | None:
    return str(policy.value) if policy is not None else None


def _groups(scopes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """*scopes* in groups as large as one command may name."""
    for first in range(0, len(scopes), SCOPES_MAX):
        yield tuple(scopes[first : first + SCOPES_MAX])


def _new_credential(credential: Credential) -> c.NewCredential:
    return c.NewCredential(credential.id, credential.digest, credential.expires_at_us)


def _has_expired(credential: Credential, now_us: int) -> bool:
    return credential.expires_at_us is not None and credential.expires_at_us <= now_us


def _place(credential_id: str) -> str:
    """The field by which messages name a credential."""
    return f"credentials ({credential_id})"

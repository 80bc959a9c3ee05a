"""
Rules for administrators: accounts, roles and tokens.

An account's id is never reused, so that audit entries stay unambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sidecar.domain.accounts import Administrator, AdminToken, describe_administrator, token_of
from sidecar.domain.api_keys import CREDENTIAL_ID, DIGEST
from sidecar.domain.audit import next_time_us
from sidecar.domain.bucket import US_PER_MINUTE
from sidecar.domain.canonical import Json
from sidecar.domain.records import changed_fields
from sidecar.domain.refusals import Code, RefusedError, raise_for, refusal
from sidecar.domain.roles import Action, Actor, Grant, Role, is_machine, merge_grants
from sidecar.domain.suggestions import did_you_mean
from sidecar.domain.texts import NAME_LENGTH_MAX, REASON_LENGTH_MAX, text_problems

ADMINISTRATOR_ID = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
ADMINISTRATORS_MAX = 1_000
"""Maximum number of accounts, removed ones included, because ids are never reused."""
RECOVERIES_MAX = 100
"""Extra accounts for recoveries beyond `ADMINISTRATORS_MAX`, so that a recovery is always possible."""
TOKENS_MAX = 10
TOKEN_LIFETIME_MAX_US = 366 * 24 * 60 * US_PER_MINUTE


@dataclass(frozen=True, slots=True)
class NewToken:
    """The public part of a new token; the token itself is never passed here."""

    id: str
    digest: str
    expires_at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminCommand:
    """
    The base of all commands about administrators.

    `action_name` is the action's name in the audit log, `action` the permission that the command needs.
    """

    action_name: ClassVar[str]
    action: ClassVar[Action] = Action.ADMINISTER

    administrator_id: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap(AdminCommand):
    """Create the first administrator of a registry."""

    action_name = "admin.bootstrap"

    name: str
    token: NewToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover(AdminCommand):
    """
    Create an administrator on the registry's machine, whose access depends on no other administrator.

    For when no token is left, or when the only administrator suspended an integration. The owner of the
    machine may be the suspender, so reactivations by the account are marked.
    """

    action_name = "admin.recover"

    name: str
    token: NewToken


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateAdministrator(AdminCommand):
    """Create an account, with its first token."""

    action_name = "admin.create"

    name: str
    role: Role
    token: NewToken


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRole(AdminCommand):
    """Change the role of an account."""

    action_name = "admin.set_role"

    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAdministrator(AdminCommand):
    """Remove an account and revoke its tokens; its id is never reused."""

    action_name = "admin.remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueToken(AdminCommand):
    """Issue another token to an account."""

    action_name = "admin.issue_token"

    token: NewToken


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeToken(AdminCommand):
    """Revoke a token at once."""

    action_name = "admin.revoke_token"

    token_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionLogAccess(AdminCommand):
    """
    The base of what an administrator does to the decision log and must be on record.

    Its subject is the administrator's own account, of which only the generation changes. `filters` name the
    rows as the API does, and `rows` is their number.
    """

    filters: Mapping[str, str]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportDecisions(DecisionLogAccess):
    """Export rows of the decision log, which have the addresses of clients."""

    action_name = "decisions.export"
    action = Action.READ_DECISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseDecisions(DecisionLogAccess):
    """Erase rows of the decision log; needs a reason."""

    action_name = "decisions.erase"
    action = Action.ERASE_DECISIONS


ADMIN_COMMANDS: tuple[type[AdminCommand], ...] = (
    Bootstrap,
    Recover,
    CreateAdministrator,
    SetRole,
    RemoveAdministrator,
    IssueToken,
    RevokeToken,
    ExportDecisions,
    EraseDecisions,
)

Directory = Mapping[str, Administrator]
"""All accounts by id, removed ones included."""


@dataclass(frozen=True, slots=True)
class AdminOutcome:
    """
    The result of a command on one account, which the store writes atomically.

    `claims` are the new token ids; an id is never reused in a registry.
    """

    administrator: Administrator
    summary: str
    before: Mapping[str, Json]
    after: Mapping[str, Json]
    claims: tuple[str, ...] = ()
    is_change: bool = True


@dataclass(frozen=True, slots=True)
class _Context:
    actor: Actor | None
    now_us: int
    at_us: int
    directory: Directory


def administer(
    directory: Directory, command: AdminCommand, actor: Actor | None, now_us: int, recorded_at_us: int = 0
) -> AdminOutcome:
    """
    Return the result of *command*.

    Args:
        directory: all accounts, removed ones too.
        command: the command.
        actor: the author; None only for `Bootstrap`, a user of the machine only for `Recover`.
        now_us: the store's clock.
        recorded_at_us: the time of the latest audit entry; new times are never earlier.

    Raises:
        RefusedError: the command is refused, and nothing must be written.
    """
    if isinstance(command, Recover):
        assert actor is not None and is_machine(actor.id)  # only commands on the machine call it
    elif not isinstance(command, Bootstrap):
        assert actor is not None  # every other command has an actor
        actor.require(command.action)
    needs_reason = isinstance(command, EraseDecisions)
    raise_for(text_problems("reason", command.reason, REASON_LENGTH_MAX, is_required=needs_reason))
    context = _Context(actor, now_us, next_time_us(recorded_at_us, now_us), directory)
    if isinstance(command, (Bootstrap, Recover, CreateAdministrator)):
        return _create(command, context)
    old = _active(directory, command.administrator_id)
    if isinstance(command, DecisionLogAccess):
        return _access(old, command)
    changed, summary, claims = _RULES[type(command)](old, command, context)
    if changed == old:
        return AdminOutcome(old, summary, {}, {}, is_change=False)
    changed = replace(changed, generation=old.generation + 1)
    _require_an_admin_left({**directory, old.id: changed}, now_us)
    before, after = changed_fields(describe_administrator(old), describe_administrator(changed))
    return AdminOutcome(changed, summary, before, after, claims)


def _create(command: Bootstrap | Recover | CreateAdministrator, context: _Context) -> AdminOutcome:
    directory, is_recovery = context.directory, isinstance(command, Recover)
    if isinstance(command, Bootstrap) and directory:
        raise refusal(
            Code.NOT_EMPTY,
            "",
            "the registry has had administrators before; only a new registry can be bootstrapped",
            "ask an administrator for an account; if none is left, run 'sidecar admin recover'",
        )
    if is_recovery and not directory:
        raise refusal(
            Code.NEVER_BOOTSTRAPPED,
            "",
            "the registry never had an administrator, so there is nothing to recover",
            "check that this is the right registry, then run 'sidecar admin bootstrap'",
        )
    if not ADMINISTRATOR_ID.fullmatch(command.administrator_id):
        raise refusal(
            Code.INVALID_VALUE,
            "administrator_id",
            f"administrator id {command.administrator_id[:80]!a} must be 1-64 of a-z, 0-9, '.', '_', '@' and"
            " '-', starting with a letter or digit",
            "choose another id; it cannot be changed later",
        )
    raise_for(text_problems("name", command.name, NAME_LENGTH_MAX, is_required=True))
    if command.administrator_id in directory:
        raise _id_in_use(directory[command.administrator_id])
    if len(directory) >= ADMINISTRATORS_MAX + (RECOVERIES_MAX if is_recovery else 0):
        raise refusal(
            Code.TOO_MANY,
            "",
            f"the registry has had {ADMINISTRATORS_MAX} administrators, which is the maximum",
            "issue a token to an existing account instead",
        )
    administrator = Administrator(
        id=command.administrator_id,
        name=command.name,
        role=command.role if isinstance(command, CreateAdministrator) else Role.ADMIN,
        created_at_us=context.at_us,
        tokens=(_new_token(command.token, (), context),),
        grants=_grants_now(context),
        is_recovered=is_recovery,
    )
    summary = f"created administrator {administrator.id} with the role {administrator.role.value}"
    if is_recovery:
        summary += ", on the machine that holds the registry"
    claims = (command.token.id,)
    return AdminOutcome(administrator, summary, {}, describe_administrator(administrator), claims)


def _access(old: Administrator, command: DecisionLogAccess) -> AdminOutcome:
    """Return the outcome that puts *command* on record."""
    verb = "exported" if isinstance(command, ExportDecisions) else "erased"
    which = ", ".join(f"{name} {value}" for name, value in command.filters.items())
    summary = f"{verb} {command.rows} rows of the decision log" + (f" with {which}" if which else "")
    after: Mapping[str, Json] = {"rows": command.rows, **command.filters}
    return AdminOutcome(replace(old, generation=old.generation + 1), summary, {}, after)


def _set_role(
    old: Administrator, command: SetRole, context: _Context
) -> tuple[Administrator, str, tuple[str, ...]]:
    if command.role is old.role:
        return old, f"{old.id} already has the role {old.role.value}", ()
    grants = merge_grants(old.grants, _grants_now(context))
    changed = replace(old, role=command.role, grants=grants)
    return changed, f"changed the role of {old.id} to {command.role.value}", ()


def _remove(
    old: Administrator, command: RemoveAdministrator, context: _Context
) -> tuple[Administrator, str, tuple[str, ...]]:
    changed = replace(old, tokens=(), removed_at_us=context.at_us)
    return changed, f"removed administrator {old.id}", ()


def _issue(
    old: Administrator, command: IssueToken, context: _Context
) -> tuple[Administrator, str, tuple[str, ...]]:
    live = tuple(token for token in old.tokens if token.expires_at_us > context.now_us)
    if len(live) >= TOKENS_MAX:
        raise refusal(
            Code.TOO_MANY,
            "token",
            f"{old.id!r} has {TOKENS_MAX} tokens, which is the maximum",
            "revoke one first",
        )
    assert context.actor is not None  # only Bootstrap comes without an actor
    is_own = context.actor.id == old.id
    # A token that its holder issued has the grants of the token that was used.
    grants = context.actor.grants if is_own else _grants_now(context)
    changed = replace(old, tokens=(*live, _new_token(command.token, grants, context)))
    return changed, f"issued token {command.token.id} to {old.id}", (command.token.id,)


def _revoke(
    old: Administrator, command: RevokeToken, context: _Context
) -> tuple[Administrator, str, tuple[str, ...]]:
    if token_of(old, command.token_id) is None:
        known = ", ".join(token.id for token in old.tokens) or "none"
        raise refusal(
            Code.TOKEN_UNKNOWN,
            "token_id",
            f"{old.id!r} has no token {command.token_id[:64]!a}",
            f"use one of its tokens: {known}",
        )
    tokens = tuple(token for token in old.tokens if token.id != command.token_id)
    return replace(old, tokens=tokens), f"revoked token {command.token_id} of {old.id}", ()


_Rule = Callable[[Administrator, Any, _Context], tuple[Administrator, str, tuple[str, ...]]]
_RULES: Mapping[type[AdminCommand], _Rule] = {
    SetRole: _set_role,
    RemoveAdministrator: _remove,
    IssueToken: _issue,
    RevokeToken: _revoke,
}


def _new_token(fresh: NewToken, grants: tuple[Grant, ...], context: _Context) -> AdminToken:
    if not CREDENTIAL_ID.fullmatch(fresh.id) or not DIGEST.fullmatch(fresh.digest):
        raise refusal(
            Code.INVALID_VALUE,
            "token",
            "a token needs an id of 1-32 of 0-9, A-Z, a-z and '-', and a digest 'sha256:' and 64 hex digits",
            "generate a new token",
        )
    if not context.now_us < fresh.expires_at_us <= context.now_us + TOKEN_LIFETIME_MAX_US:
        raise refusal(
            Code.INVALID_VALUE,
            "expires_at_us",
            "an administrator's token must expire within the next 366 days",
            "choose a time within 366 days",
        )
    return AdminToken(fresh.id, fresh.digest, context.at_us, fresh.expires_at_us, grants)


def _grants_now(context: _Context) -> tuple[Grant, ...]:
    """Return the grants of access given by this actor: its own, and those that it depends on."""
    if context.actor is None:
        return ()
    return merge_grants([Grant(context.actor.id, context.at_us)], context.actor.grants)


def _active(directory: Directory, administrator_id: str) -> Administrator:
    administrator = directory.get(administrator_id)
    if administrator is None or not administrator.is_active:
        state = "was removed" if administrator is not None else "does not exist"
        active = (known.id for known in directory.values() if known.is_active)
        meant = did_you_mean(administrator_id, active) if administrator is None else ""
        raise refusal(
            Code.ADMINISTRATOR_UNKNOWN,
            "administrator_id",
            f"administrator {administrator_id[:80]!a} {state}{meant}",
            "list the administrators to find the id",
        )
    return administrator


def _require_an_admin_left(directory: Directory, now_us: int) -> None:
    for account in directory.values():
        is_able = any(token.expires_at_us > now_us for token in account.tokens)
        if account.is_active and account.role is Role.ADMIN and is_able:
            return
    raise refusal(
        Code.LAST_ADMINISTRATOR,
        "administrator_id",
        "this would leave no administrator with the role admin and a live token",
        "create another administrator, or issue another token, first",
    )


def _id_in_use(known: Administrator) -> RefusedError:
    if known.is_active:
        return refusal(
            Code.ID_TAKEN,
            "administrator_id",
            f"administrator {known.id!r} already exists",
            "choose another id",
        )
    return refusal(
        Code.ID_RETIRED,
        "administrator_id",
        f"{known.id!r} belonged to an administrator who was removed; ids are never reused, so that audit"
        " entries stay unambiguous",
        "choose another id",
    )

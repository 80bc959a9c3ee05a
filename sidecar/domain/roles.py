"""Roles of administrators, their permissions, and the actor of a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from sidecar.domain.refusals import Code, refusal


class Role(Enum):
    """The role of an administrator."""

    ADMIN = "admin"
    AUDITOR = "auditor"
    OPERATOR = "operator"


class Action(Enum):
    """The actions that need a permission; every command and every read has one."""

    READ_INTEGRATIONS = "read_integrations"
    READ_AUDIT = "read_audit"
    READ_ADMINISTRATORS = "read_administrators"
    READ_DECISIONS = "read_decisions"
    CREATE = "create"
    EDIT = "edit"
    DELETE = "delete"
    SCOPES = "scopes"
    ALLOWLIST = "allowlist"
    LIMIT = "limit"
    SHADOW = "shadow"
    CREDENTIALS = "credentials"
    WEBHOOK_SECRETS = "webhook_secrets"
    SUSPEND = "suspend"
    REACTIVATE = "reactivate"
    ERASE_DECISIONS = "erase_decisions"
    ADMINISTER = "administer"


PERMISSIONS: Mapping[Role, frozenset[Action]] = {
    Role.ADMIN: frozenset(Action),
    # Reads everything and changes nothing, not even its own tokens.
    Role.AUDITOR: frozenset(
        {Action.READ_INTEGRATIONS, Action.READ_AUDIT, Action.READ_ADMINISTRATORS, Action.READ_DECISIONS}
    ),
    # Suspends integrations, and reads them and their decisions to find the one to suspend.
    Role.OPERATOR: frozenset({Action.READ_INTEGRATIONS, Action.READ_DECISIONS, Action.SUSPEND}),
}
"""The complete permission matrix: every other action is refused."""


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """
    The access that one administrator granted to another at `at_us`: an account, a role or a token.

    A reactivation checks grants to detect an account that the suspender created to reactivate.
    """

    by: str
    at_us: int


def merge_grants(*grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """
    Return the latest grant of each administrator, sorted by administrator.

    >>> merge_grants([Grant("ann", 1)], [Grant("ann", 3), Grant("bob", 2)])
    (Grant(by='ann', at_us=3), Grant(by='bob', at_us=2))
    """
    latest: dict[str, int] = {}
    for group in grants:
        for grant in group:
            latest[grant.by] = max(grant.at_us, latest.get(grant.by, grant.at_us))
    return tuple(Grant(by, latest[by]) for by in sorted(latest))


MACHINE = "machine:"
"""Prefix of the actor id of a command that ran on the machine without a token."""


def is_machine(actor_id: str) -> bool:
    """Whether *actor_id* is a user of the registry's machine instead of an administrator."""
    return actor_id.startswith(MACHINE)


@dataclass(frozen=True, slots=True)
class Actor:
    """
    The author of a change: an administrator with a token, or a user of the registry's machine.

    Actors with equal `id` are the same, whatever their tokens. `grants` are the latest direct and indirect
    grants to the account and the token. `is_recovered` = the account was created on the machine, without an
    administrator.
    """

    id: str
    role: Role
    token_id: str
    grants: tuple[Grant, ...] = ()
    is_recovered: bool = False

    def may(self, action: Action) -> bool:
        """Return whether the role permits *action*."""
        return action in PERMISSIONS[self.role]

    def require(self, action: Action) -> None:
        """
        Raise unless the role permits *action*.

        Raises:
            ForbiddenError: role_forbids.
        """
        if not self.may(action):
            allowed = " or ".join(role.value for role in Role if action in PERMISSIONS[role])
            raise refusal(
                Code.ROLE_FORBIDS,
                "",
                f"{self.id!r} has the role {self.role.value}, which does not permit {action.value}",
                f"ask an administrator with the role {allowed}",
            )


def machine_actor(user: str) -> Actor:
    """
    Return the actor of a command that *user* runs on the registry's machine.

    It has the permissions of an operator, and may run `administrators.Recover`.
    """
    return Actor(MACHINE + user, Role.OPERATOR, "")

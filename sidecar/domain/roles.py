"""Roles of administrators, what each role may do, and the actor behind a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from sidecar.domain.refusals import Code, refusal


class Role(Enum):
    """What an administrator is there for."""

    ADMIN = "admin"
    AUDITOR = "auditor"
    OPERATOR = "operator"


class Action(Enum):
    """Everything that needs a permission; every command and every way of reading has one."""

    READ_INTEGRATIONS = "read_integrations"
    READ_AUDIT = "read_audit"
    READ_ADMINISTRATORS = "read_administrators"
    CREATE = "create"
    EDIT = "edit"
    DELETE = "delete"
    SCOPES = "scopes"
    ALLOWLIST = "allowlist"
    LIMIT = "limit"
    CREDENTIALS = "credentials"
    WEBHOOK_SECRETS = "webhook_secrets"
    SUSPEND = "suspend"
    REACTIVATE = "reactivate"
    ADMINISTER = "administer"


PERMISSIONS: Mapping[Role, frozenset[Action]] = {
    Role.ADMIN: frozenset(Action),
    # Reads everything, changes nothing, not even tokens of its own.
    Role.AUDITOR: frozenset({Action.READ_INTEGRATIONS, Action.READ_AUDIT, Action.READ_ADMINISTRATORS}),
    # Suspends, and reads what it needs to find whom to suspend.
    Role.OPERATOR: frozenset({Action.READ_INTEGRATIONS, Action.SUSPEND}),
}
"""The whole matrix: an action that is not named is refused."""


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """
    Access that one administrator gave to another: an account, a role or a token.

    `at_us` is when. It lets a reactivation tell a colleague from an account that the suspender made for
    the purpose.
    """

    by: str
    at_us: int


def merge_grants(*grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """
    Keep the latest grant of each administrator, in order of their names.

    >>> merge_grants([Grant("ann", 1)], [Grant("ann", 3), Grant("bob", 2)])
    (Grant(by='ann', at_us=3), Grant(by='bob', at_us=2))
    """
    latest: dict[str, int] = {}
    for group in grants:
        for grant in group:
            latest[grant.by] = max(grant.at_us, latest.get(grant.by, grant.at_us))
    return tuple(Grant(by, latest[by]) for by in sorted(latest))


MACHINE = "machine:"
"""
Begins the actor id of a command that ran on the machine without a token; no administrator's id has a colon.
"""


def is_machine(actor_id: str) -> bool:
    """Whether *actor_id* is no administrator, but a user of the machine that holds the registry."""
    return actor_id.startswith(MACHINE)


@dataclass(frozen=True, slots=True)
class Actor:
    """
    Who makes a change: one administrator, by one token; or a user of the machine that holds the registry.

    Identity is `id`: an administrator with two tokens is one administrator. `grants` says, over all
    steps, who gave this account and this token their access, and when at the latest. `is_recovered` = the
    account was made on the machine, by nobody who has a name in the registry.
    """

    id: str
    role: Role
    token_id: str
    grants: tuple[Grant, ...] = ()
    is_recovered: bool = False

    def may(self, action: Action) -> bool:
        """Whether the role permits *action*."""
        return action in PERMISSIONS[self.role]

    def require(self, action: Action) -> None:
        """
        Refuse what the role does not permit.

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
    The actor of a command that *user* runs on the machine, on the registry itself.

    It may suspend and look, as an operator may; the one other thing it may do is `administrators.Recover`.
    """
    return Actor(MACHINE + user, Role.OPERATOR, "")

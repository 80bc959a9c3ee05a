"""
Dual control: who may reactivate a suspended integration, and whether two people took part.

Two accounts are not enough: they must belong to two people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.domain.accounts import Administrator, actor_of
from sidecar.domain.integrations import Suspension
from sidecar.domain.refusals import Code, RefusedError, refusal
from sidecar.domain.roles import Action, Actor, is_machine

RECOVER_REMEDY = (
    "another administrator must do this: one whose access you did not grant; if there is none, the owner of"
    " the registry can run 'sidecar admin recover' on its machine"
)


def refusal_to_reactivate(
    actor: Actor, suspensions: Sequence[Suspension], integration_id: str
) -> RefusedError | None:
    """
    Return why *actor* may not end *suspensions*; None = it may.

    Administrators who suspended it since the last reactivation may not, and neither may accounts and tokens
    to which one of them granted access since. Access granted on the machine is judged by `is_single_person`
    instead: otherwise a suspension by the only administrator could never end.
    """
    suspenders = {suspension.by for suspension in suspensions}
    if actor.id in suspenders:
        return refusal(
            Code.SAME_ADMINISTRATOR,
            "",
            f"{actor.id!r} suspended {integration_id!r} and cannot reactivate it",
            RECOVER_REMEDY,
        )
    since_us = _since_us(suspensions)
    for grant in actor.grants:
        if grant.by in suspenders and grant.at_us >= since_us and not is_machine(grant.by):
            return refusal(
                Code.GRANTED_BY_SUSPENDER,
                "",
                f"{actor.id!r} was granted access by {grant.by!r}, who suspended {integration_id!r}",
                RECOVER_REMEDY,
            )
    return None


def is_single_person(actor: Actor, suspensions: Sequence[Suspension]) -> bool:
    """
    Whether *actor* and a suspender may be one person: the owner of the registry's machine.

    True if the account was recovered on the machine, if a recovered account granted its access since the
    suspension, or if the suspension was made on the machine, because then its author is unknown.
    """
    since_us = _since_us(suspensions)
    return (
        actor.is_recovered
        or any(is_machine(suspension.by) for suspension in suspensions)
        or any(is_machine(grant.by) and grant.at_us >= since_us for grant in actor.grants)
    )


def able_to_reactivate(
    accounts: Iterable[Administrator], suspensions: Sequence[Suspension], now_us: int
) -> tuple[str, ...]:
    """Return the administrators who may end *suspensions*, with a token that is live at *now_us*."""
    return tuple(
        account.id
        for account in accounts
        if any(
            actor.may(Action.REACTIVATE) and refusal_to_reactivate(actor, suspensions, "") is None
            for actor in _live_actors(account, now_us)
        )
    )


def _live_actors(account: Administrator, now_us: int) -> Iterable[Actor]:
    if not account.is_active:
        return ()
    return (actor_of(account, token) for token in account.tokens if token.expires_at_us > now_us)


def _since_us(suspensions: Sequence[Suspension]) -> int:
    """Return the time of the first suspension; access granted earlier does not count."""
    return min((suspension.since_us for suspension in suspensions), default=0)

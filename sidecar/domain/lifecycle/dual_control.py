"""
Dual control: who may reactivate what was suspended, and what proves that two people took part.

Four eyes must be the eyes of two people, so it is not enough that two accounts took part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.domain.accounts import Administrator, actor_of
from sidecar.domain.integrations import Suspension
from sidecar.domain.refusals import Code, RefusedError, refusal
from sidecar.domain.roles import Action, Actor, is_machine

RECOVER_REMEDY = (
    "another administrator must do this: one whose access you did not grant; if there is none, whoever owns"
    " the registry runs 'sidecar admin recover' on its machine"
)


def refusal_to_reactivate(
    actor: Actor, suspensions: Sequence[Suspension], integration_id: str
) -> RefusedError | None:
    """
    Why *actor* may not end *suspensions*; None = it may.

    Nobody who suspended it since the last reactivation may, nor an account or a token to which one of
    them gave access since. A user of the machine is no administrator, so what it gave is judged by
    `is_single_person` instead: else nobody could ever end what the only administrator suspended.
    """
    suspenders = {suspension.by for suspension in suspensions}
    if actor.id in suspenders:
        return refusal(
            Code.SAME_ADMINISTRATOR,
            "",
            f"{actor.id!r} suspended {integration_id!r} and cannot be the one who reactivates it",
            RECOVER_REMEDY,
        )
    since_us = _since_us(suspensions)
    for grant in actor.grants:
        if grant.by in suspenders and grant.at_us >= since_us and not is_machine(grant.by):
            return refusal(
                Code.GRANTED_BY_SUSPENDER,
                "",
                f"{actor.id!r} has this access from {grant.by!r}, who had suspended {integration_id!r}",
                RECOVER_REMEDY,
            )
    return None


def is_single_person(actor: Actor, suspensions: Sequence[Suspension]) -> bool:
    """
    Whether *actor* and a suspender may be one person who owns the machine that holds the registry.

    So it is when the account was recovered there, when its access came from such an account since the
    suspension, and when the suspension was made there, because then nothing says by whom.
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
    """The administrators who may end *suspensions*, each by a token that is live at *now_us*."""
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
    """Since when nobody may be given access by a suspender; access from before does not count."""
    return min((suspension.since_us for suspension in suspensions), default=0)

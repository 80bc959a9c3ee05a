"""What an administrator must know before a suspension: whether anybody could end it."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.domain.accounts import Administrator
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle.dual_control import able_to_reactivate
from sidecar.domain.lifecycle.outcome import Notice
from sidecar.stores.registry.protocol import Registry, RegistryError

NOBODY_CAN_REACTIVATE = "nobody_can_reactivate"


async def accounts_now(registry: Registry) -> tuple[Administrator, ...] | None:
    """Every account; None = the registry cannot tell, which must not hold up a suspension."""
    try:
        return await registry.administrators()
    except RegistryError:
        return None


def lock_notices(
    accounts: Sequence[Administrator] | None, suspended: Integration, now_us: int
) -> tuple[Notice, ...]:
    """The notice that nobody among *accounts* could reactivate *suspended*; none when somebody could."""
    if accounts is None or able_to_reactivate(accounts, suspended.suspensions, now_us):
        return ()
    return (
        Notice(
            NOBODY_CAN_REACTIVATE,
            "",
            f"nobody can reactivate {suspended.id!r} once you have suspended it: that takes another"
            " administrator with a live token, and there is none; make one first ('sidecar admin create'), or"
            " have the owner of the registry run 'sidecar admin recover' on its machine, which the audit log"
            " shows for ever",
        ),
    )

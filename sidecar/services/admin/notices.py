"""Warnings: nobody could reactivate an integration, or the last admin token expires soon."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.domain.accounts import EXPIRY_WARNING_US, Administrator, live_admin_tokens
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle.dual_control import able_to_reactivate
from sidecar.domain.lifecycle.outcome import Notice
from sidecar.services.admin.times import format_time
from sidecar.stores.registry.protocol import Registry, RegistryError

DAY_US = 24 * 3_600 * 1_000_000
NOBODY_CAN_REACTIVATE = "nobody_can_reactivate"


async def accounts_now(registry: Registry) -> tuple[Administrator, ...] | None:
    """Return all accounts; None = the registry is unavailable, which must not delay a suspension."""
    try:
        return await registry.administrators()
    except RegistryError:
        return None


def lock_notices(
    accounts: Sequence[Administrator] | None, suspended: Integration, now_us: int
) -> tuple[Notice, ...]:
    """Return a warning if nobody among *accounts* could reactivate *suspended*."""
    if accounts is None or able_to_reactivate(accounts, suspended.suspensions, now_us):
        return ()
    return (
        Notice(
            NOBODY_CAN_REACTIVATE,
            "",
            f"nobody can reactivate {suspended.id!r} after you suspend it, because no other administrator has"
            " a live token; create one first ('sidecar admin create'), or have the owner of the registry run"
            " 'sidecar admin recover' on its machine, which the audit log records",
        ),
    )


def expiry_notices(accounts: Sequence[Administrator], now_us: int) -> tuple[Notice, ...]:
    """Return a warning if the last token with the role admin expires within two weeks, or has expired."""
    live = live_admin_tokens(accounts, now_us)
    if not live:
        message = (
            "no administrator with the role admin has a live token; the owner of the registry must run"
            " 'sidecar admin recover' on its machine"
        )
        return (Notice("no_live_admin_token", "", message),) if accounts else ()
    account, token = live[-1]
    if token.expires_at_us - now_us > EXPIRY_WARNING_US:
        return ()
    days = (token.expires_at_us - now_us) // DAY_US
    return (
        Notice(
            "last_admin_token_expires",
            "",
            f"the last token with the role admin, {token.id} of {account.id}, expires at"
            f" {format_time(token.expires_at_us)}, in {days} {'day' if days == 1 else 'days'}; issue another"
            f" one with 'sidecar admin token issue {account.id}'. After it expires, only 'sidecar admin"
            " recover' on the machine of the registry helps",
        ),
    )

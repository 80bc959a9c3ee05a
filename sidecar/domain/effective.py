"""What of a record is in force at a moment: the part of it that changes by itself as time passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sidecar.domain.bucket import Quota
from sidecar.domain.integrations import Credential, Integration, LimitRaise, Status


def raise_in_force(record: Integration, now_us: int) -> LimitRaise | None:
    """The temporary raise of the limit, while it lasts."""
    limit_raise = record.limit_raise
    return limit_raise if limit_raise is not None and now_us < limit_raise.until_us else None


def effective_quota(record: Integration, now_us: int) -> Quota:
    """The quota at *now_us*: a raise counts until it ends."""
    limit_raise = raise_in_force(record, now_us)
    if limit_raise is None:
        return record.quota
    return Quota.per_minute(limit_raise.rate_limit_rpm, limit_raise.burst)


def next_change_at_us(record: Integration, now_us: int) -> int | None:
    """
    When `in_force` of this record changes by itself; None = never.

    The expiry of credentials does not count: every decision looks at it anyway.
    """
    limit_raise = raise_in_force(record, now_us)
    return limit_raise.until_us if limit_raise is not None else None


def next_change_of_all_at_us(records: Iterable[Integration], now_us: int) -> int | None:
    """When the first of *records* changes by itself; None = none does."""
    times = (next_change_at_us(record, now_us) for record in records if record.limit_raise is not None)
    return min((time for time in times if time is not None), default=None)


def is_invalidated(record: Integration, credential: Credential) -> bool:
    """Whether *credential* was issued before the latest suspension, so that it never works again."""
    return credential.issued_generation < record.suspended_generation


def is_live(record: Integration, credential: Credential, now_us: int) -> bool:
    """Whether *credential* works, or will once the integration is active again."""
    expired = credential.expires_at_us is not None and credential.expires_at_us <= now_us
    return not expired and not is_invalidated(record, credential)


def in_force(record: Integration, now_us: int) -> Integration:
    """
    The record as decisions must see it at *now_us*: compile snapshots from this.

    A raise is applied, a disabled allowlist has no entries, and an active integration has no credential
    from before its latest suspension. A suspended one keeps them, so that its callers are told that it is
    suspended. The same object comes back when nothing differs.
    """
    changes: dict[str, object] = {}
    limit_raise = raise_in_force(record, now_us)
    if limit_raise is not None:
        changes.update(rate_limit_rpm=limit_raise.rate_limit_rpm, burst=limit_raise.burst)
    if record.ip_allowlist and not record.is_allowlist_enabled:
        changes.update(ip_allowlist=())
    if record.status is Status.ACTIVE and any(
        is_invalidated(record, credential) for credential in record.credentials
    ):
        kept = tuple(
            credential for credential in record.credentials if not is_invalidated(record, credential)
        )
        changes.update(credentials=kept)
    return replace(record, **changes) if changes else record  # type: ignore[arg-type]

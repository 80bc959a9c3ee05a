"""Computes the effective state of a record at a given time."""

from __future__ import annotations

from dataclasses import replace

from sidecar.domain.integrations import Credential, Integration, LimitRaise, Status


def raise_in_force(record: Integration, now_us: int) -> LimitRaise | None:
    """Return the temporary raise of the limit, unless it has ended."""
    limit_raise = record.limit_raise
    return limit_raise if limit_raise is not None and now_us < limit_raise.until_us else None


def next_change_at_us(record: Integration, now_us: int) -> int | None:
    """
    Return when the effective state changes without a command; None = never.

    The expiry of credentials is excluded, because every decision checks it.
    """
    limit_raise = raise_in_force(record, now_us)
    return limit_raise.until_us if limit_raise is not None else None


def is_invalidated(record: Integration, credential: Credential) -> bool:
    """Whether *credential* was issued before the latest suspension and is therefore permanently invalid."""
    return credential.issued_generation < record.suspended_generation


def is_live(record: Integration, credential: Credential, now_us: int) -> bool:
    """Whether *credential* works while the integration is active."""
    expired = credential.expires_at_us is not None and credential.expires_at_us <= now_us
    return not expired and not is_invalidated(record, credential)


def in_force(record: Integration, now_us: int) -> Integration:
    """
    Return the effective record at *now_us*, from which snapshots are compiled.

    A raise is applied, a disabled allowlist has no entries, and an active integration has no credential
    from before its latest suspension. A suspended integration keeps its credentials, so that its callers get
    `integration_suspended`. Returns *record* itself if nothing differs.
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

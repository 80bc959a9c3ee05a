"""Rules of credentials: issue, rotate with an overlap, revoke, expire."""

from __future__ import annotations

from dataclasses import replace

from sidecar.domain.bucket import US_PER_MINUTE
from sidecar.domain.effective import is_invalidated, is_live
from sidecar.domain.integrations import CREDENTIALS_MAX, Credential, Integration, IntegrationError
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import CommandContext, Draft, Notice
from sidecar.domain.refusals import Code, RefusedError, refusal

OVERLAP_MAX_US = 30 * 24 * 60 * US_PER_MINUTE
TIME_MAX_US = 2**53 - 1


def issue(record: Integration, command: c.IssueCredential, context: CommandContext) -> Draft:
    """Add a credential."""
    roomy, notices = _with_room(record, context)
    credential = new_credential(command.credential, context)
    _require_unused(record, credential.id)
    changed = replace(roomy, credentials=(*roomy.credentials, credential))
    return Draft(changed, f"issued credential {credential.id}", notices, claims=(credential.id,))


def rotate(record: Integration, command: c.RotateCredential, context: CommandContext) -> Draft:
    """Issue a credential that replaces a live one, which keeps working for the overlap."""
    check_overlap(command.overlap_us)
    old = _live(record, command.credential_id, context)
    if old.replaced_by:
        raise refusal(
            Code.CREDENTIAL_REPLACED,
            "credential_id",
            f"credential {old.id} was already replaced by {old.replaced_by}",
            f"rotate {old.replaced_by}, or revoke {old.id} to end its overlap",
        )
    new = new_credential(command.credential, context)
    _require_unused(record, new.id)
    others = tuple(credential for credential in record.credentials if credential.id != old.id)
    if command.overlap_us:
        ends_us = context.now_us + command.overlap_us
        ends_us = ends_us if old.expires_at_us is None else min(ends_us, old.expires_at_us)
        others = (*others, replace(old, expires_at_us=ends_us, replaced_by=new.id))
    roomy, notices = _with_room(replace(record, credentials=others), context)
    changed = replace(roomy, credentials=(*roomy.credentials, new))
    return Draft(changed, f"rotated credential {old.id} to {new.id}", notices, claims=(new.id,))


def revoke(record: Integration, command: c.RevokeCredential, context: CommandContext) -> Draft:
    """Revoke a credential at once; it is removed from the record."""
    old = _known(record, command.credential_id)
    others = tuple(credential for credential in record.credentials if credential.id != old.id)
    notices: tuple[Notice, ...] = ()
    if is_live(record, old, context.now_us) and not any(
        is_live(record, other, context.now_us) for other in others
    ):
        message = f"{record.id!r} has no live credential left: all its requests are refused"
        notices = (Notice("no_live_credential", "credential_id", message),)
    return Draft(replace(record, credentials=others), f"revoked credential {old.id}", notices)


def set_expiry(record: Integration, command: c.SetCredentialExpiry, context: CommandContext) -> Draft:
    """Change when a live credential expires; a replaced one must still expire within the longest overlap."""
    old = _live(record, command.credential_id, context)
    check_expiry("expires_at_us", command.expires_at_us, context.now_us)
    latest_us = context.now_us + OVERLAP_MAX_US
    if old.replaced_by and (command.expires_at_us is None or command.expires_at_us > latest_us):
        raise refusal(
            Code.CREDENTIAL_REPLACED,
            "expires_at_us",
            f"credential {old.id} was replaced by {old.replaced_by} and must end within 30 days",
            "choose a time within 30 days",
        )
    changed = replace(old, expires_at_us=command.expires_at_us)
    credentials = tuple(
        changed if credential.id == old.id else credential for credential in record.credentials
    )
    return Draft(replace(record, credentials=credentials), f"changed when credential {old.id} expires")


def new_credential(fresh: c.NewCredential, context: CommandContext) -> Credential:
    """
    Return a new credential for the record.

    Raises:
        InvalidError: its id, digest or expiry is wrong.
    """
    check_expiry("expires_at_us", fresh.expires_at_us, context.now_us)
    try:
        return Credential(
            fresh.id, fresh.digest, fresh.expires_at_us, context.at_us, issued_generation=context.generation
        )
    except IntegrationError as error:
        raise refusal(
            Code.INVALID_VALUE, "credential", str(error), "take id and digest from 'sidecar keys new'"
        ) from None


def check_expiry(field: str, expires_at_us: int | None, now_us: int) -> None:
    """
    Refuse an expiry that is not in the future.

    Raises:
        InvalidError: it is in the past, or too far in the future.
    """
    if expires_at_us is not None and not now_us < expires_at_us <= TIME_MAX_US:
        raise refusal(
            Code.INVALID_VALUE,
            field,
            "a credential must expire in the future",
            "choose a later time; to end a credential at once, revoke it",
        )


def check_overlap(overlap_us: int) -> None:
    """
    Refuse an overlap out of range.

    Raises:
        InvalidError: negative, or longer than 30 days.
    """
    if not 0 <= overlap_us <= OVERLAP_MAX_US:
        raise refusal(
            Code.INVALID_VALUE,
            "overlap_us",
            f"the overlap is {overlap_us / 86_400_000_000:g} days; it must be 0 to 30 days",
            "choose a shorter overlap; 0 ends the old secret at once",
        )


def _with_room(record: Integration, context: CommandContext) -> tuple[Integration, tuple[Notice, ...]]:
    """Return the record with room for another credential; drops those that have ended, oldest first."""
    excess = len(record.credentials) + 1 - CREDENTIALS_MAX
    if excess <= 0:
        return record, ()
    ended = [
        credential for credential in record.credentials if not is_live(record, credential, context.now_us)
    ]
    dropped = {credential.id for credential in ended[:excess]}
    if len(dropped) < excess:
        raise refusal(
            Code.TOO_MANY,
            "credential",
            f"{record.id!r} has {CREDENTIALS_MAX} live credentials, which is the maximum",
            "revoke one that is no longer used",
        )
    kept = tuple(credential for credential in record.credentials if credential.id not in dropped)
    message = f"removed {', '.join(sorted(dropped))}, which had expired or were invalidated, to make room"
    return replace(record, credentials=kept), (Notice("dropped_ended", "credential", message),)


def _require_unused(record: Integration, credential_id: str) -> None:
    if any(credential.id == credential_id for credential in record.credentials):
        raise credential_id_used(credential_id)


def credential_id_used(credential_id: str) -> RefusedError:
    """Return the refusal of a credential id that was used before."""
    return refusal(
        Code.CREDENTIAL_ID_USED,
        "credential",
        f"credential id {credential_id!r} was used before; ids are never reused, so that a revoked or"
        " invalidated credential cannot return",
        "generate a new API key",
    )


def _known(record: Integration, credential_id: str) -> Credential:
    for credential in record.credentials:
        if credential.id == credential_id:
            return credential
    known = ", ".join(credential.id for credential in record.credentials) or "none"
    raise refusal(
        Code.CREDENTIAL_UNKNOWN,
        "credential_id",
        f"{record.id!r} has no credential {credential_id[:64]!a}",
        f"use one of its credentials: {known}",
    )


def _live(record: Integration, credential_id: str, context: CommandContext) -> Credential:
    credential = _known(record, credential_id)
    if not is_live(record, credential, context.now_us):
        ended = "was invalidated by a suspension" if is_invalidated(record, credential) else "has expired"
        raise refusal(
            Code.CREDENTIAL_ENDED,
            "credential_id",
            f"credential {credential_id} {ended} and cannot work again",
            "issue a new credential",
        )
    return credential

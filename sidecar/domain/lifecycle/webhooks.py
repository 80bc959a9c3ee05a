"""Rules of webhook signing secrets: one signs; during a rotation the previous one signs, too."""

from __future__ import annotations

import re
from dataclasses import replace

from sidecar.domain.integrations import Integration, WebhookSecret
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.credentials import check_overlap
from sidecar.domain.lifecycle.outcome import CommandContext, Draft, Notice
from sidecar.domain.refusals import Code, refusal

SECRET_ID = re.compile(r"[0-9A-Za-z-]{1,32}")
SEALED_LENGTH_MAX = 1_024


def generate(record: Integration, command: c.GenerateWebhookSecret, context: CommandContext) -> Draft:
    """Create the first secret."""
    live = live_secrets(record, context.now_us)
    if live:
        raise refusal(
            Code.SECRET_EXISTS,
            "",
            f"{record.id!r} already has the webhook secret {live[-1].id}",
            "rotate it instead, with an overlap if the receiver needs time",
        )
    secret = _new(record, command.secret, context)
    changed = replace(record, webhook_secrets=(secret,))
    return Draft(changed, f"generated webhook secret {secret.id}", sealed=(command.secret,))


def rotate(record: Integration, command: c.RotateWebhookSecret, context: CommandContext) -> Draft:
    """Replace the secret; the previous one keeps signing for the overlap, and an earlier overlap ends."""
    check_overlap(command.overlap_us)
    live = live_secrets(record, context.now_us)
    if not live:
        raise refusal(
            Code.SECRET_UNKNOWN, "", f"{record.id!r} has no webhook secret to rotate", "generate one first"
        )
    secret = _new(record, command.secret, context)
    kept: tuple[WebhookSecret, ...] = ()
    if command.overlap_us:
        kept = (replace(live[-1], expires_at_us=context.now_us + command.overlap_us),)
    notices = tuple(
        Notice("overlap_ended", "overlap_us", f"this change ended the overlap of webhook secret {old.id}")
        for old in live[:-1]
    )
    changed = replace(record, webhook_secrets=(*kept, secret))
    summary = f"rotated webhook secret {live[-1].id} to {secret.id}"
    return Draft(changed, summary, notices, sealed=(command.secret,))


def live_secrets(record: Integration, now_us: int) -> tuple[WebhookSecret, ...]:
    """Return the secrets that sign at *now_us*, the current one last."""
    return tuple(
        webhook_secret
        for webhook_secret in record.webhook_secrets
        if webhook_secret.expires_at_us is None or webhook_secret.expires_at_us > now_us
    )


def _new(record: Integration, secret: c.SealedSecret, context: CommandContext) -> WebhookSecret:
    known = {webhook_secret.id for webhook_secret in record.webhook_secrets}
    if (
        not SECRET_ID.fullmatch(secret.id)
        or secret.id in known
        or not 1 <= len(secret.sealed) <= SEALED_LENGTH_MAX
    ):
        raise refusal(
            Code.INVALID_VALUE,
            "secret",
            "a webhook secret needs a new id of 1-32 of 0-9, A-Z, a-z and '-', and a sealed secret of"
            f" 1-{SEALED_LENGTH_MAX} characters",
            "generate a new secret",
        )
    return WebhookSecret(secret.id, context.at_us)

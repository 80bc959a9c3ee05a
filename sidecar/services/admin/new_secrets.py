"""Secrets that the API draws, each shown once: API keys, administrators' tokens, webhook secrets."""

from __future__ import annotations

import secrets
from base64 import b64encode
from dataclasses import dataclass, field

from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.lifecycle.commands import NewCredential, SealedSecret
from sidecar.services.admin.context import Sealer

WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix, no password
WEBHOOK_SECRET_BYTES = 32
"""Standard Webhooks asks for 24 to 64 bytes."""

_NO_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True)
class DrawnCredential:
    """A fresh API key, and its public half."""

    api_key: str = field(repr=False)
    public: NewCredential


@dataclass(frozen=True, slots=True)
class DrawnSecret:
    """A fresh webhook secret, and what is kept of it."""

    secret: str = field(repr=False)
    sealed: SealedSecret


def draw_credential(expires_at_us: int | None) -> DrawnCredential:
    """Draw an API key that ends at *expires_at_us*, None = never."""
    fresh = generate_api_key()
    return DrawnCredential(fresh.api_key, NewCredential(fresh.credential_id, fresh.digest, expires_at_us))


def credential_to_try(expires_at_us: int | None) -> NewCredential:
    """What stands for a credential where a change is only tried: no key has this digest."""
    return NewCredential(f"dry-run-{secrets.token_hex(8)}", _NO_DIGEST, expires_at_us)


def draw_webhook_secret(sealer: Sealer) -> DrawnSecret:
    """Draw a signing secret as Standard Webhooks writes them, and seal it with *sealer*."""
    secret = WEBHOOK_SECRET_PREFIX + b64encode(secrets.token_bytes(WEBHOOK_SECRET_BYTES)).decode()
    return DrawnSecret(secret, SealedSecret(_secret_id(), sealer.seal(secret)))


def secret_to_try() -> SealedSecret:
    """What stands for a webhook secret where a change is only tried."""
    return SealedSecret(_secret_id(), "tried")


def _secret_id() -> str:
    return "whs-" + secrets.token_hex(6)

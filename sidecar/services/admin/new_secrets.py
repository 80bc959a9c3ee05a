"""Generates secrets, each shown once: API keys and webhook secrets."""

from __future__ import annotations

import secrets
from base64 import b64encode
from dataclasses import dataclass, field

from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.lifecycle.commands import NewCredential, SealedSecret
from sidecar.services.admin.context import Sealer

WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix, no password
WEBHOOK_SECRET_BYTES = 32
"""Standard Webhooks requires 24 to 64 bytes."""

_NO_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True)
class GeneratedCredential:
    """A new API key, and its public part."""

    api_key: str = field(repr=False)
    public: NewCredential


@dataclass(frozen=True, slots=True)
class GeneratedSecret:
    """A new webhook secret, and its stored form."""

    secret: str = field(repr=False)
    sealed: SealedSecret


def generate_credential(expires_at_us: int | None) -> GeneratedCredential:
    """Generate an API key that expires at *expires_at_us*, None = never."""
    fresh = generate_api_key()
    return GeneratedCredential(fresh.api_key, NewCredential(fresh.credential_id, fresh.digest, expires_at_us))


def placeholder_credential(expires_at_us: int | None) -> NewCredential:
    """Return a placeholder for a dry run: no API key has this digest."""
    return NewCredential(f"dry-run-{secrets.token_hex(8)}", _NO_DIGEST, expires_at_us)


def generate_webhook_secret(sealer: Sealer) -> GeneratedSecret:
    """Generate a signing secret in the form of Standard Webhooks, and encrypt it with *sealer*."""
    secret = WEBHOOK_SECRET_PREFIX + b64encode(secrets.token_bytes(WEBHOOK_SECRET_BYTES)).decode()
    return GeneratedSecret(secret, SealedSecret(_secret_id(), sealer.seal(secret)))


def placeholder_secret() -> SealedSecret:
    """Return a placeholder for a dry run."""
    return SealedSecret(_secret_id(), "tried")


def _secret_id() -> str:
    return "whs-" + secrets.token_hex(6)

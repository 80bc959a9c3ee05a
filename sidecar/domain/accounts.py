"""
Accounts of administrators and their tokens: stored values and authentication.

A token has the format of an API key with the prefix 'sca'; only its digest is stored.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sidecar.domain.api_keys import ApiKeyError, credential_id_of
from sidecar.domain.canonical import Json, canonical_json
from sidecar.domain.refusals import Code, refusal
from sidecar.domain.roles import Actor, Grant, Role, is_machine, merge_grants

TOKEN_PREFIX = "sca"  # noqa: S105 - a prefix, no password
_NO_DIGEST = sha256(b"compared with when there is no token, so that the answer takes as long").digest()


class AuthenticationError(Exception):
    """
    A call has no valid token.

    `reason` is for logs; callers always get the same message, so that tokens cannot be probed.
    """

    def __init__(self, reason: str) -> None:
        """Store *reason*: missing, malformed, unknown, expired or ended."""
        self.reason = reason
        super().__init__("a valid administrator's token is required: send 'Authorization: Bearer <token>'")


@dataclass(frozen=True, slots=True)
class AdminToken:
    """
    One token of an administrator, without its secret.

    `digest` is 'sha256:' and 64 hex digits; `grants` are who granted it, directly or indirectly.
    """

    id: str
    digest: str
    issued_at_us: int
    expires_at_us: int
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class Administrator:
    """
    An account. `removed_at_us` None = active; a removed account has no tokens and is kept for its id.

    `grants` are the administrators who granted the account and its role, directly or indirectly.
    `is_recovered` = created on the machine that holds the registry (`administrators.Recover`), so its access
    depends on no administrator.
    """

    id: str
    name: str
    role: Role
    created_at_us: int
    tokens: tuple[AdminToken, ...] = ()
    grants: tuple[Grant, ...] = ()
    removed_at_us: int | None = None
    generation: int = 1
    is_recovered: bool = False

    @property
    def is_active(self) -> bool:
        """Whether the account is active."""
        return self.removed_at_us is None


def token_id_of(token: str | None) -> str:
    """
    Return the public id of a token, after checking its format.

    Raises:
        AuthenticationError: missing or malformed.
    """
    if not token:
        raise AuthenticationError("missing")
    if not token.startswith(TOKEN_PREFIX + "_"):
        raise AuthenticationError("malformed")
    try:
        return credential_id_of(token)
    except ApiKeyError:
        raise AuthenticationError("malformed") from None


def authenticate(token: str, holder: Administrator | None, now_us: int) -> Actor:
    """
    Return the actor of *token*, whose id belongs to *holder* (None = unknown id); compares in constant time.

    Raises:
        AuthenticationError: it is not that account's token, or it has expired.
    """
    token_id = token_id_of(token)
    known = token_of(holder, token_id)
    digest = bytes.fromhex(known.digest.removeprefix("sha256:")) if known is not None else _NO_DIGEST
    is_same = hmac.compare_digest(sha256(token.encode()).digest(), digest)
    if holder is None or known is None or not is_same:
        raise AuthenticationError("unknown")
    if known.expires_at_us <= now_us:
        raise AuthenticationError("expired")
    return actor_of(holder, known)


def actor_of(holder: Administrator, token: AdminToken) -> Actor:
    """Return the actor for *holder* and *token*."""
    grants = merge_grants(holder.grants, token.grants)
    return Actor(holder.id, holder.role, token.id, grants, holder.is_recovered)


def confirm(actor: Actor, holder: Administrator | None, now_us: int) -> Actor:
    """
    Return the current state of *actor*, in the transaction of the change.

    Since its authentication the account may have been removed, its role changed or its token revoked. A user
    of the machine has no account: access to the store is its permission.

    Raises:
        ForbiddenError: actor_ended.
    """
    if is_machine(actor.id):
        return actor
    token = token_of(holder, actor.token_id)
    if holder is None or holder.id != actor.id or token is None or token.expires_at_us <= now_us:
        raise refusal(
            Code.ACTOR_ENDED,
            "",
            f"the account of {actor.id!r} was removed, or its token has expired or was revoked",
            "ask another administrator for a new token",
        )
    return actor_of(holder, token)


EXPIRY_WARNING_US = 14 * 24 * 3_600 * 1_000_000
"""How long before the last token expires warnings begin."""


def live_admin_tokens(
    accounts: Iterable[Administrator], now_us: int
) -> list[tuple[Administrator, AdminToken]]:
    """Return the live tokens with the role admin, ordered by expiry."""
    live = [
        (account, token)
        for account in accounts
        if account.is_active and account.role is Role.ADMIN
        for token in account.tokens
        if token.expires_at_us > now_us
    ]
    return sorted(live, key=lambda pair: pair[1].expires_at_us)


def describe_administrator(administrator: Administrator) -> dict[str, Json]:
    """
    Return the public form of *administrator*: tokens by id, no digests.

    `is_recovered` is left out if it is False, so that older accounts keep their text, and thereby the digest
    in the audit log.
    """
    return {
        **({"is_recovered": True} if administrator.is_recovered else {}),
        "id": administrator.id,
        "name": administrator.name,
        "role": administrator.role.value,
        "created_at_us": administrator.created_at_us,
        "removed_at_us": administrator.removed_at_us,
        "tokens": {
            token.id: {"issued_at_us": token.issued_at_us, "expires_at_us": token.expires_at_us}
            for token in administrator.tokens
        },
    }


def stored_administrator(administrator: Administrator) -> str:
    """Return *administrator* as canonical JSON; `parse_administrator` reads it."""
    return canonical_json(
        {
            **describe_administrator(administrator),
            "tokens": [
                {
                    "id": token.id,
                    "digest": token.digest,
                    "issued_at_us": token.issued_at_us,
                    "expires_at_us": token.expires_at_us,
                    "grants": _stored_grants(token.grants),
                }
                for token in administrator.tokens
            ],
            "grants": _stored_grants(administrator.grants),
            "generation": administrator.generation,
        }
    )


def parse_administrator(stored: Mapping[str, Any]) -> Administrator:
    """
    Read the parsed JSON of `stored_administrator`.

    Raises:
        KeyError: a field is missing.
        ValueError: a value is of another kind.
    """
    tokens = tuple(
        AdminToken(**{**token, "grants": _parsed_grants(token["grants"])}) for token in stored["tokens"]
    )
    return Administrator(
        id=stored["id"],
        name=stored["name"],
        role=Role(stored["role"]),
        created_at_us=stored["created_at_us"],
        tokens=tokens,
        grants=_parsed_grants(stored["grants"]),
        removed_at_us=stored["removed_at_us"],
        generation=stored["generation"],
        is_recovered=stored.get("is_recovered", False),
    )


def _stored_grants(grants: tuple[Grant, ...]) -> list[Json]:
    return [{"by": grant.by, "at_us": grant.at_us} for grant in grants]


def _parsed_grants(stored: list[dict[str, Any]]) -> tuple[Grant, ...]:
    return tuple(Grant(**grant) for grant in stored)


def token_of(holder: Administrator | None, token_id: str) -> AdminToken | None:
    """Return the token of *holder* with this id; a removed account has none."""
    tokens = holder.tokens if holder is not None and holder.is_active else ()
    return next((token for token in tokens if token.id == token_id), None)

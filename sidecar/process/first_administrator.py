"""
Creates administrators in the registry itself: the first one, and one for recovery when all tokens are lost.

This needs access to the registry's file or store, and bypasses the admin API.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sidecar.domain.accounts import TOKEN_PREFIX
from sidecar.domain.administrators import AdminCommand, Bootstrap, NewToken, Recover
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.changes import AdminRequest, ChangeContext
from sidecar.domain.roles import Actor, machine_actor
from sidecar.services.admin.views import durability_view
from sidecar.stores.registry.protocol import Registry

US_PER_SECOND = 1_000_000
_USER = re.compile(r"[0-9A-Za-z._-]{1,32}")


@dataclass(frozen=True, slots=True)
class CreatedAdministrator:
    """
    A new administrator; `token` is stored nowhere else, `expires_at` is ISO 8601 in UTC.

    `is_durable` and `lacks_replicas` as in `DurabilityView`.
    """

    id: str
    name: str
    token: str = field(repr=False)
    token_id: str
    expires_at: str
    is_durable: bool
    lacks_replicas: bool


async def create_first_administrator(
    registry: Registry, id: str, name: str, lifetime_s: int
) -> CreatedAdministrator:
    """
    Create the administrator *id* with a token that expires after *lifetime_s*.

    Raises:
        RefusedError: the registry has had administrators before, or the id or the name is invalid.
        RegistryError: the registry failed.
    """

    def command(token: NewToken) -> AdminCommand:
        return Bootstrap(administrator_id=id, name=name, token=token)

    return await _make(registry, command, None, lifetime_s)


async def recover_administrator(
    registry: Registry, id: str, name: str, reason: str, lifetime_s: int
) -> CreatedAdministrator:
    """
    Create the administrator *id*, whom no other administrator has granted access; see `Recover`.

    Raises:
        RefusedError: the registry never had an administrator, or the id or a text is invalid.
        RegistryError: the registry failed.
    """

    def command(token: NewToken) -> AdminCommand:
        return Recover(administrator_id=id, name=name, token=token, reason=reason)

    return await _make(registry, command, local_actor(), lifetime_s)


def local_actor() -> Actor:
    """The operating-system user of this process, as the audit log names users."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = ""
    return machine_actor(name if _USER.fullmatch(name) else str(uid))


def local_context() -> ChangeContext:
    """The origin of a change that is made in the registry itself."""
    return ChangeContext(request_id=secrets.token_hex(8), source="local")


async def _make(
    registry: Registry, command: Callable[[NewToken], AdminCommand], actor: Actor | None, lifetime_s: int
) -> CreatedAdministrator:
    fresh = generate_api_key(TOKEN_PREFIX)
    await registry.token_holder(fresh.credential_id)  # a read, to learn the registry's clock
    expires_at_us = registry.now_us() + lifetime_s * US_PER_SECOND
    token = NewToken(fresh.credential_id, fresh.digest, expires_at_us)
    made = await registry.administer(AdminRequest(command(token), actor, local_context()))
    expires_at = datetime.fromtimestamp(expires_at_us // US_PER_SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return CreatedAdministrator(
        made.administrator.id,
        made.administrator.name,
        fresh.api_key,
        fresh.credential_id,
        expires_at,
        **durability_view(registry, made.is_durable),
    )

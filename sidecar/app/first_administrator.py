"""Makes the first administrator of a registry: the one account that nobody gave."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sidecar.domain.accounts import TOKEN_PREFIX
from sidecar.domain.administrators import Bootstrap, NewToken
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.changes import AdminRequest, ChangeContext
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.protocol import Registry

US_PER_DAY = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class FirstAdministrator:
    """What was made; `token` is nowhere else, `expires_at` is ISO 8601 in UTC."""

    id: str
    name: str
    token: str = field(repr=False)
    token_id: str
    expires_at: str


async def make_first_administrator(
    registry: Registry,
    id: str,
    name: str,
    expires_in_days: int,
    clock_us: Callable[[], int] = wall_clock_us,
) -> FirstAdministrator:
    """
    Make the administrator *id* with a token that lives for *expires_in_days*.

    Raises:
        RefusedError: the registry has had administrators before, or the id or the name cannot be.
        RegistryError: the registry failed.
    """
    fresh = generate_api_key(TOKEN_PREFIX)
    expires_at_us = clock_us() + expires_in_days * US_PER_DAY
    token = NewToken(fresh.credential_id, fresh.digest, expires_at_us)
    context = ChangeContext(request_id=secrets.token_hex(8), source="local")
    command = Bootstrap(administrator_id=id, name=name, token=token)
    made = await registry.administer(AdminRequest(command, None, context))
    expires_at = datetime.fromtimestamp(expires_at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return FirstAdministrator(
        made.administrator.id, made.administrator.name, fresh.api_key, fresh.credential_id, expires_at
    )

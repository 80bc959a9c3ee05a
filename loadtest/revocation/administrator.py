"""The administrator of the trials: creates the integrations, and suspends one of them in each trial."""

from __future__ import annotations

from collections.abc import Sequence
from time import time

from sidecar.domain.administrators import Bootstrap, NewToken
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.changes import AdminRequest, ChangeContext, ChangeRequest, Committed
from sidecar.domain.lifecycle.commands import CreateIntegration, NewCredential, Suspend
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.roles import Actor, Role
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.stores.redis.urls import StoreUrl
from sidecar.stores.registry.protocol import REQUESTS_MAX
from sidecar.stores.registry.redis.registry import RedisRegistry

ACTOR = Actor("prover", Role.ADMIN, "prover1")
CONTEXT = ChangeContext("revocation", "local")
TOKEN_LIFETIME_US = 24 * 3_600 * 1_000_000
LIMIT_RPM, BURST = 10_000, 1_000_000
"""No trial empties such a bucket, so every denial comes from the suspension."""


class Administrator:
    """Changes the registry at a store, as an operator's program does."""

    def __init__(self, url: StoreUrl) -> None:
        """Use the registry at *url*; connects at the first change."""
        self.registry = RedisRegistry(url, Lifecycle(ScopeCatalogue()))

    async def prepare(self, count: int) -> list[str]:
        """
        Create *count* integrations and return their API keys.

        Raises:
            RegistryError, RefusedError: the registry refused a change or is unavailable.
        """
        digest = generate_api_key().digest
        token = NewToken(ACTOR.token_id, digest, int(time() * 1e6) + TOKEN_LIFETIME_US)
        first = Bootstrap(administrator_id=ACTOR.id, name="Revocation", token=token)
        await self.registry.administer(AdminRequest(first, None, CONTEXT))
        keys = [generate_api_key() for _ in range(count)]
        requests = [
            ChangeRequest(
                CreateIntegration(
                    integration_id=name_of(number),
                    name=f"Trial {number}",
                    rate_limit_rpm=LIMIT_RPM,
                    burst=BURST,
                    credentials=(NewCredential(key.credential_id, key.digest),),
                ),
                ACTOR,
                CONTEXT,
            )
            for number, key in enumerate(keys)
        ]
        for start in range(0, count, REQUESTS_MAX):
            _raise_any(await self.registry.apply_many(requests[start : start + REQUESTS_MAX]))
        return [key.api_key for key in keys]

    async def suspend(self, number: int) -> Committed:
        """Suspend the integration of trial *number*; return when the change is committed."""
        command = Suspend(integration_id=name_of(number), reason="trial")
        return await self.registry.apply(ChangeRequest(command, ACTOR, CONTEXT))

    async def close(self) -> None:
        """Close the registry's connections."""
        await self.registry.aclose()


def name_of(trial: int) -> str:
    """Return the id of a trial's integration."""
    return f"trial-{trial}"


def _raise_any(outcomes: Sequence[Committed | Exception]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome

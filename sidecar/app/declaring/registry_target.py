"""A registry itself as the target of declared changes, past any running sidecar."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from sidecar.app.declaring.target import Declined, Made, Result, TargetError
from sidecar.domain.accounts import AuthenticationError, authenticate, token_id_of
from sidecar.domain.changes import ChangeContext, ChangeRequest
from sidecar.domain.declared import Step
from sidecar.domain.integrations import Integration
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Action, Actor
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.stores.embedded import wall_clock_us
from sidecar.stores.registry.protocol import Registry, RegistryError

Value = TypeVar("Value")

NO_AUTHOR = (
    "this registry has no administrator yet, so nobody could be named as the author of a change:"
    " 'sidecar admin bootstrap' makes the first one and prints a token"
)
UNKNOWN_AUTHOR = (
    "this token is nobody's here, or it has expired: ask an administrator for a new one, and check that the"
    " configuration names the registry that you mean"
)


async def authenticated(registry: Registry, token: str) -> Actor:
    """
    The administrator behind *token*, as *registry* knows them now.

    Raises:
        TargetError: there is none, or they may not read the registry.
        RegistryError: the registry failed.
    """
    try:
        holder = await registry.token_holder(token_id_of(token))
        actor = authenticate(token, holder, wall_clock_us())
    except AuthenticationError:
        has_people = bool(await registry.administrators())
        raise TargetError(UNKNOWN_AUTHOR if has_people else NO_AUTHOR) from None
    try:
        actor.require(Action.READ_INTEGRATIONS)
    except RefusedError as error:
        raise TargetError(str(error)) from None
    return actor


class RegistryTarget:
    """See `ChangeTarget`: *registry*, on the event loop of *runner*, under the rights of *actor*."""

    knows_digests = True

    def __init__(
        self, registry: Registry, actor: Actor, catalogue: ScopeCatalogue, runner: asyncio.Runner
    ) -> None:
        """Change *registry*; its audit log tells the changes of one run by a common request id."""
        self._registry = registry
        self._actor = actor
        self._catalogue = catalogue
        self._runner = runner
        self._context = ChangeContext(request_id=f"push-{secrets.token_hex(8)}", source="local")

    def identify(self) -> Actor:
        """See `ChangeTarget.identify`."""
        return self._actor

    def catalogue(self) -> ScopeCatalogue:
        """See `ChangeTarget.catalogue`."""
        return self._catalogue

    def load(self) -> tuple[Integration, ...]:
        """See `ChangeTarget.load`."""
        return self._run(self._registry.load_all()).records

    def apply(self, steps: Sequence[Step]) -> tuple[Result, ...]:
        """See `ChangeTarget.apply`."""
        requests = [
            ChangeRequest(step.command, self._actor, self._context, step.expected_generation)
            for step in steps
        ]
        made = self._run(self._registry.apply_many(requests))
        return tuple(
            Declined(one.code.word, str(one)) if isinstance(one, RefusedError) else Made(one.generation)
            for one in made
        )

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        try:
            return self._runner.run(work)
        except RegistryError as error:
            raise TargetError(str(error), may_have_happened=error.may_have_happened) from error

"""Applies a file to the registry itself, without the admin API, for `registry push`."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path

from sidecar.cli.apply_flow import Document
from sidecar.cli.exits import CommandError
from sidecar.domain.accounts import AuthenticationError, authenticate, token_id_of
from sidecar.domain.changes import ChangeContext
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Action, Actor
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.services.admin.apply.engine import ApplyRequest, PlanChangedError, default_reason
from sidecar.services.admin.apply.run import apply_declared
from sidecar.stores.registry.file.registry_file import load_declarations
from sidecar.stores.registry.protocol import Registry

NO_ADMINISTRATOR = (
    "this registry has no administrator yet, and every change needs one as its author\n"
    "  create the first one with 'sidecar admin bootstrap', which prints a token"
)
UNKNOWN_AUTHOR = (
    "the token is not valid for this registry: it has expired, was revoked, or belongs to another registry\n"
    "  ask an administrator for a new token, and check that the configuration names the right registry"
)


class Push:
    """Applies *file* to *registry*, on the event loop of *runner*."""

    def __init__(
        self, registry: Registry, catalogue: ScopeCatalogue, runner: asyncio.Runner, file: Path
    ) -> None:
        """Store the arguments; reads nothing."""
        self._registry = registry
        self._catalogue = catalogue
        self._runner = runner
        self._file = file

    def prepare(self, token: str, reason: str, *, has_prune: bool) -> None:
        """
        Authenticate *token* and read the file.

        Raises:
            CommandError: the token is not valid, or its role may not read the registry.
            FileFaultsError: the file holds mistakes.
            RegistryError: the registry failed.
        """
        actor = self._runner.run(self._authenticated(token))
        declared = load_declarations(self._file, str(self._file), self._catalogue)
        self._warnings = [str(warning) for warning in declared.warnings]
        self._request = ApplyRequest(
            declared.declarations,
            reason or default_reason(self._file.name),
            actor,
            ChangeContext(request_id=f"push-{secrets.token_hex(8)}", source="local"),
            self._registry.now_us(),
            has_prune,
        )

    def plan(self) -> Document:
        """
        Make the plan; change nothing.

        Raises:
            RegistryError: the registry failed.
        """
        return self._run(replace(self._request, is_dry_run=True))

    def apply(self, plan: str) -> Document:
        """
        Apply the plan with the digest *plan*.

        Raises:
            CommandError: the registry has changed since; nothing was changed.
            RegistryError: the registry failed before anything was changed.
        """
        return self._run(replace(self._request, expected_plan=plan))

    def _run(self, request: ApplyRequest) -> Document:
        try:
            view, _ = self._runner.run(apply_declared(self._registry, self._catalogue, request))
        except PlanChangedError:
            raise CommandError(
                "the registry has changed since the plan was made; nothing was changed: run the command again"
            ) from None
        return {**view, "warnings": [*self._warnings, *view["warnings"]]}

    async def _authenticated(self, token: str) -> Actor:
        try:
            holder = await self._registry.token_holder(token_id_of(token))
            actor = authenticate(token, holder, self._registry.now_us())
            actor.require(Action.READ_INTEGRATIONS)
        except AuthenticationError:
            has_accounts = bool(await self._registry.administrators())
            raise CommandError(UNKNOWN_AUTHOR if has_accounts else NO_ADMINISTRATOR) from None
        except RefusedError as error:
            raise CommandError(str(error)) from None
        return actor

"""Commands on the registry itself, for when the admin API is down or every token is lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from sidecar.admin_client.client import Answer
from sidecar.cli.admin_command import Invocation
from sidecar.cli.exits import EXIT_USAGE, CommandError
from sidecar.domain.refusals import Code, RefusedError
from sidecar.services.admin.suggestion import closest_integration
from sidecar.stores.registry.protocol import Registry, RegistryError

Result = TypeVar("Result")


def on_registry(config: Path | None, work: Callable[[Registry], Awaitable[Result]]) -> Result:
    """
    Run *work* on the registry that the configuration at *config* names.

    Raises:
        CommandError: the registry cannot be reached or used, or refused the change.
        FileFaultsError: the configuration holds mistakes, or has no registry that can be changed.
    """
    from sidecar.process.config import load_config
    from sidecar.process.control_plane import open_registry

    loaded = load_config(config)

    async def run() -> Result:
        registry = await open_registry(loaded)
        try:
            return await work(registry)
        finally:
            await registry.aclose()

    try:
        return asyncio.run(run())
    except RefusedError as error:
        raise CommandError(str(error)) from None
    except RegistryError as error:
        doubt = "; the change may have been made: check first" if error.may_have_happened else ""
        raise CommandError(f"{error}{doubt}") from None


FILE_BYTES_MAX = 64 * 1024 * 1024


def suspend_offline(call: Invocation, config: Path | None, id: str, reason: str, question: str) -> None:
    """
    Suspend *id* in the registry that the configuration at *config* names, as a user of this machine.

    Raises:
        CommandError: not confirmed; the registry is a file, cannot be reached, or refused the change.
        FileFaultsError: the configuration holds mistakes, or names no registry.
    """
    from sidecar.process.config import load_config

    path = load_config(config).registry_path
    if path is not None:
        raise CommandError(how_to_edit(path, id))
    options = call.integration_change
    if options.idempotency_key:
        raise CommandError("--idempotency-key needs the admin API; leave it out with --offline", EXIT_USAGE)
    call.confirm(question, is_urgent=True)

    async def work(registry: Registry) -> dict[str, Any]:
        try:
            return await _suspend(registry, id, reason, options.expect, options.dry_run, options.waiting_s)
        except RefusedError as error:
            meant = ""
            if error.code is Code.INTEGRATION_UNKNOWN:
                meant = await closest_integration(registry, id)
            raise CommandError(f"{error}" + (f"\n  did you mean {meant!r}?" if meant else "")) from None

    call.print_change(Answer(on_registry(config, work), is_replay=False))


async def _suspend(
    registry: Registry, id: str, reason: str, expected: int | None, is_dry_run: bool, wait_s: int | None
) -> dict[str, Any]:
    """The same document as the admin API's answer to a suspension."""
    from sidecar.domain.changes import ChangeRequest
    from sidecar.domain.lifecycle.commands import Suspend
    from sidecar.process.first_administrator import local_actor, local_context
    from sidecar.services.admin.confirmation import confirmed
    from sidecar.services.admin.notices import accounts_now, lock_notices
    from sidecar.services.admin.views import durability_view, integration_view, notice_view

    command = Suspend(integration_id=id, reason=reason)
    request = ChangeRequest(command, local_actor(), local_context(), expected)
    if is_dry_run:
        tried = await registry.preview(request)
        record, notices, summary = tried.record, tried.notices, tried.summary
    else:
        made = await registry.apply(request)
        record, notices = made.record, made.notices
        summary = made.entry.summary if made.entry is not None else "already suspended"
    now_us = registry.now_us()
    notices += lock_notices(await accounts_now(registry), record, now_us)
    data: dict[str, Any] = {
        "integration": integration_view(record, now_us),
        "notices": [notice_view(notice) for notice in notices],
        "is_change": True,
        "is_dry_run": is_dry_run,
        "summary": summary,
    }
    if not is_dry_run:
        data |= durability_view(registry, made.is_durable)
    if wait_s is not None and not is_dry_run and made.position is not None:
        data["confirmation"] = await confirmed(registry, [made.position], wait_s)
    return data


def how_to_edit(path: Path, id: str) -> str:
    """Instructions to suspend *id* in the registry file at *path*."""
    return "\n  ".join(
        (
            f"the registry is the file {path}; this command cannot change it. To suspend {id}:",
            f"1. {_place(path, id)}, add the line: status: suspended",
            "   (replace an existing 'status'; indent it like 'id')",
            "2. save the file: every sidecar reads it again within seconds, without a restart",
            "3. run 'sidecar check-config': a file with a mistake is rejected, and nothing is suspended",
            "A file cannot invalidate API keys: remove the leaked key before you reactivate.",
        )
    )


def _place(path: Path, id: str) -> str:
    """The place of the entry of *id* in the file, in words."""
    entry = re.compile(rf"\s*(-\s+)?[\"']?id[\"']?\s*:\s*[\"']?{re.escape(id)}[\"']?\s*(#.*)?")
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(FILE_BYTES_MAX).splitlines()
    except OSError as error:
        return f"{path} cannot be read here ({error.strerror}); below the line 'id: {id}'"
    found = [number for number, line in enumerate(lines, 1) if entry.fullmatch(line)]
    if found:
        return f"below line {found[0]} ('id: {id}')"
    return f"no line 'id: {id}' was found; in the entry of the integration"

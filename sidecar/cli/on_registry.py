"""Runs commands on the registry itself, without a running sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from sidecar.cli.exits import CommandError
from sidecar.stores.registry.protocol import Registry, RegistryError

Result = TypeVar("Result")


def on_registry(config: Path | None, work: Callable[[Registry], Awaitable[Result]]) -> Result:
    """
    Run *work* on the registry that the configuration at *config* names.

    Raises:
        CommandError: the registry cannot be reached or used, or refused the change.
        FileFaultsError: the configuration holds mistakes, or has no registry that can be changed.
    """
    from sidecar.domain.refusals import RefusedError
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

"""What the admin API works on: the registry, and what the process around it lends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.domain.changes import Position
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.observe.metrics import Metrics
from sidecar.stores.clocks import steady_clock_us
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.uses import TokenUses


class Sealer(Protocol):
    """Encrypts webhook secrets, so that whoever reads the registry's store cannot sign with them."""

    def seal(self, text: str) -> str:
        """*text* encrypted, as printable ASCII of at most `webhooks.SEALED_LENGTH_MAX` characters."""


@dataclass(frozen=True, slots=True)
class AdminContext:
    """
    The parts that one admin API is made of.

    `put_in_force` waits, within a bound of its own, until this sidecar decides by the change at a position;
    False = some worker of it does not yet. `sealer` None = no key to
    encrypt webhook secrets with is configured, so none are made. `clock_us` tells the time, `steady_us`
    measures how much of it has passed. `token_uses` gathers when and from where tokens are used; whoever
    serves the API writes them to the registry.
    """

    registry: Registry
    catalogue: ScopeCatalogue
    metrics: Metrics
    put_in_force: Callable[[Position], Awaitable[bool]]
    sealer: Sealer | None
    clock_us: Callable[[], int]
    steady_us: Callable[[], int] = steady_clock_us
    token_uses: TokenUses = field(default_factory=TokenUses)

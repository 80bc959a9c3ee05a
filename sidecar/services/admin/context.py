"""The dependencies of the admin API: the registry, and what the process provides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from sidecar.domain.changes import Position
from sidecar.domain.policy import Policy
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.observe.metrics import Metrics
from sidecar.services.admin.decision_log import DecisionLog
from sidecar.services.admin.problems import ApiCode, problem_error
from sidecar.stores.clocks import steady_clock_us
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.uses import TokenUses


class Sealer(Protocol):
    """Encrypts webhook secrets, so that a reader of the registry's store cannot sign with them."""

    def seal(self, text: str) -> str:
        """Return *text* encrypted, as printable ASCII of at most `webhooks.SEALED_LENGTH_MAX` characters."""


@dataclass(frozen=True, slots=True)
class AdminContext:
    """
    The dependencies of one admin API.

    `put_in_force` waits, within its own bound, until this sidecar has applied the change at a position;
    False = a worker has not applied it yet. `sealer` None = no key for webhook secrets is configured, so none
    can be created. `clock_us` is the wall clock, `steady_us` a monotonic one. `token_uses` collects when and
    from where tokens are used; the process writes them to the registry. `policy`
    explains logged decisions.
    """

    registry: Registry
    catalogue: ScopeCatalogue
    metrics: Metrics
    put_in_force: Callable[[Position], Awaitable[bool]]
    sealer: Sealer | None
    clock_us: Callable[[], int]
    steady_us: Callable[[], int] = steady_clock_us
    token_uses: TokenUses = field(default_factory=TokenUses)
    decision_log: DecisionLog | None = None
    policy: Policy = field(kw_only=True)

    def require_decision_log(self) -> DecisionLog:
        """
        Return the decision log.

        Raises:
            ProblemError: none is configured.
        """
        if self.decision_log is None:
            raise problem_error(
                ApiCode.DECISION_LOG_OFF,
                "this sidecar has no decision log",
                "set 'decision_log: {path: DIR}' in its configuration, and restart it",
            )
        return self.decision_log

"""The latest refusals of each integration by this process, which show its developer why a request failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from sidecar.domain.answers import Decision
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest

REFUSALS_MAX = 20
"""Refusals kept of an integration."""
INTEGRATIONS_MAX = 1_000
"""Integrations whose refusals are kept, in at most 20 MiB; beyond it the first refused one is dropped."""
PATH_CHARS_MAX = 256
METHOD_CHARS_MAX = 32


class Refusal(NamedTuple):
    """One refused request; `path` has no query."""

    at_us: int
    reason: Reason
    method: str
    path: str
    decision_id: str


class RecentRefusals:
    """A bounded number of refusals by integration."""

    __slots__ = ("_by_integration", "since_us")

    def __init__(self, now_us: int) -> None:
        """Keep refusals from *now_us* on."""
        self.since_us = now_us
        self._by_integration: dict[str, deque[Refusal]] = {}

    def note(self, request: AccessRequest, decision: Decision, now_us: int) -> None:
        """Keep the refusal *decision* of a known integration."""
        integration = decision.evaluation.integration
        assert integration is not None
        refusals = self._by_integration.get(integration.id)
        if refusals is None:
            if len(self._by_integration) >= INTEGRATIONS_MAX:
                del self._by_integration[next(iter(self._by_integration))]
            refusals = self._by_integration[integration.id] = deque(maxlen=REFUSALS_MAX)
        path = request.path.partition("?")[0][:PATH_CHARS_MAX]
        method = request.method[:METHOD_CHARS_MAX]
        refusals.append(Refusal(now_us, decision.reason, method, path, decision.id))

    def of(self, integration_id: str) -> Iterator[Refusal]:
        """The refusals of one integration, the latest first."""
        return reversed(self._by_integration.get(integration_id, deque()))

"""Keeps the registry told of when and from where credentials are used, without costing decisions a wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sidecar.domain.decisions import Reason
from sidecar.domain.policy import Evaluation
from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics
from sidecar.stores.registry.protocol import Registry, RegistryError
from sidecar.stores.registry.uses import CredentialUses, RefusedCallers

FLUSH_INTERVAL_S = 5.0
LAST_FLUSH_TIMEOUT_S = 2.0

_log = logging.getLogger("sidecar.registry")


def use_noter(uses: CredentialUses, refusals: RefusedCallers) -> Callable[[Evaluation, int], None]:
    """
    What a decider tells of each request with a known key.

    A use is one whose key was accepted, also when it was out of scope or over its limit. It is none when
    the address was refused: a stolen key tried from elsewhere must not count as an address that belongs.
    Then it is kept apart, so that an administrator can see who is locked out.
    """
    note, note_refusal, refused = uses.note, refusals.note, Reason.IP_NOT_ALLOWED

    def note_use(evaluation: Evaluation, now_us: int) -> None:
        integration, credential = evaluation.integration, evaluation.credential
        if integration is None or credential is None:  # both or none
            return
        address = evaluation.client_address
        if evaluation.reason is refused:
            note_refusal(integration.id, credential.id, address or b"", now_us)
        elif address is not None:
            note(credential.id, integration.id, address, now_us)

    return note_use


class UseKeeping:
    """Writes what *uses* and *refusals* gather to a registry, every few seconds and once at the end."""

    def __init__(
        self,
        uses: CredentialUses,
        refusals: RefusedCallers,
        registry: Registry,
        metrics: Metrics,
        flush_interval_s: float = FLUSH_INTERVAL_S,
    ) -> None:
        """Count in *metrics*."""
        self._uses = uses
        self._refusals = refusals
        self._registry = registry
        self._metrics = metrics
        self._flush_interval_s = flush_interval_s
        self._dropped_told = 0
        self._is_failing = False

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(self._flush_interval_s)
            await self.flush()

    async def end(self) -> None:
        """Write what is left, within a bound; what does not get through is lost."""
        try:
            async with asyncio.timeout(LAST_FLUSH_TIMEOUT_S):
                await self.flush()
        except TimeoutError:
            log_event(_log, logging.WARNING, "uses of credentials lost at the end", uses=len(self._uses))

    async def flush(self) -> None:
        """Write what waits; what fails waits on, and is told once."""
        if not self._uses and not self._refusals:
            return
        try:
            written = await self._uses.flush(self._registry)
            self._metrics.add("sidecar_credential_uses_written_total", by=written)
            await self._refusals.flush(self._registry)
        except RegistryError as error:
            if not self._is_failing:
                log_event(_log, logging.WARNING, "uses of credentials not written yet", problem=str(error))
            self._is_failing = True
        else:
            self._is_failing = False
        dropped, self._dropped_told = self._uses.dropped_count - self._dropped_told, self._uses.dropped_count
        if dropped:
            self._metrics.add("sidecar_credential_uses_dropped_total", by=dropped)

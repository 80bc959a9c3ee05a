"""Writes to the registry when and from where credentials were used, in the background of decisions."""

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


def use_recorder(uses: CredentialUses, refusals: RefusedCallers) -> Callable[[Evaluation, int], None]:
    """
    What a decider calls for each request with a known key.

    A request whose key was accepted counts as a use, even if it was out of scope or over its limit. A request
    from a refused address goes to *refusals* instead, where administrators see who is locked out: the address
    of a stolen key must not appear among those of the integration. A request that only an allowlist in shadow
    refuses counts as both.
    """
    note, note_refusal, refused = uses.note, refusals.note, Reason.IP_NOT_ALLOWED

    def note_use(evaluation: Evaluation, now_us: int) -> None:
        integration, credential = evaluation.integration, evaluation.credential
        if integration is None or credential is None:  # both are None or neither
            return
        address = evaluation.client_address
        if evaluation.reason is refused or evaluation.would_deny is refused:
            note_refusal(integration.id, credential.id, address or b"", now_us)
        if evaluation.reason is not refused and address is not None:
            note(credential.id, integration.id, address, now_us)

    return note_use


class CredentialUseWriter:
    """Writes *uses* and *refusals* to a registry, every few seconds and at the end."""

    def __init__(
        self,
        uses: CredentialUses,
        refusals: RefusedCallers,
        registry: Registry,
        metrics: Metrics,
        flush_interval_s: float = FLUSH_INTERVAL_S,
    ) -> None:
        """Count written and dropped uses in *metrics*."""
        self._uses = uses
        self._refusals = refusals
        self._registry = registry
        self._metrics = metrics
        self._flush_interval_s = flush_interval_s
        self._dropped_counted = 0
        self._is_failing = False

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(self._flush_interval_s)
            await self.flush()

    async def end(self) -> None:
        """Write the rest within `LAST_FLUSH_TIMEOUT_S`; afterwards it is lost."""
        try:
            async with asyncio.timeout(LAST_FLUSH_TIMEOUT_S):
                await self.flush()
        except TimeoutError:
            log_event(_log, logging.WARNING, "uses of credentials lost at shutdown", uses=len(self._uses))

    async def flush(self) -> None:
        """Write what was recorded; after a failure keep it for the next flush, and log the first failure."""
        if not self._uses and not self._refusals:
            return
        try:
            written = await self._uses.flush(self._registry)
            self._metrics.add("sidecar_credential_uses_written_total", by=written)
            await self._refusals.flush(self._registry)
        except RegistryError as error:
            if not self._is_failing:
                log_event(
                    _log, logging.WARNING, "uses of credentials not written; retrying", problem=str(error)
                )

            self._is_failing = True
        else:
            self._is_failing = False
        dropped, self._dropped_counted = (
            self._uses.dropped_count - self._dropped_counted,
            self._uses.dropped_count,
        )
        if dropped:
            self._metrics.add("sidecar_credential_uses_dropped_total", by=dropped)

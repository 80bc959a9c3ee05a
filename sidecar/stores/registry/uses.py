"""Write-behind buffers for uses of credentials and tokens, and for refused callers."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.domain.cidr import Address
from sidecar.stores.registry.protocol import (
    REFUSED_MAX,
    TOKEN_USES_MAX,
    CredentialUse,
    RefusedCaller,
    Registry,
    TokenUse,
)

PENDING_MAX = 100_000
"""Maximum number of pairs of credential and address between two flushes; about 20 MB."""
REFUSED_INTEGRATIONS_MAX = 1_000
"""Maximum number of integrations with refused callers between two flushes; about 5 MB."""
FLUSH_BATCH_MAX = 1_000
"""Uses written per call: the event loop, which also decides requests, builds them in a millisecond."""


class CredentialUses:
    """
    Buffers the latest use of each credential from each address until the next flush.

    At most *pending_max* pairs are kept; uses of more pairs are dropped and counted in `dropped_count`. Not
    thread-safe: use it on one event loop.
    """

    __slots__ = ("_pending", "_pending_max", "dropped_count")

    def __init__(self, pending_max: int = PENDING_MAX) -> None:
        self._pending: dict[tuple[str, Address], tuple[str, int]] = {}
        self._pending_max = pending_max
        self.dropped_count = 0

    def __len__(self) -> int:
        return len(self._pending)

    def note(self, credential_id: str, integration_id: str, address: Address, now_us: int) -> None:
        """Buffer one use: a single dict write."""
        key = (credential_id, address)
        if len(self._pending) < self._pending_max or key in self._pending:
            self._pending[key] = (integration_id, now_us)
        else:
            self.dropped_count += 1

    async def flush(self, registry: Registry) -> int:
        """
        Write the buffer to *registry*, in bounded batches.

        Returns:
            The number of uses written.

        Raises:
            RegistryError: the registry failed; unwritten uses stay buffered, as far as there is room.
        """
        pending, self._pending = self._pending, {}
        written = 0
        while pending:
            batch = dict(pending.popitem() for _ in range(min(len(pending), FLUSH_BATCH_MAX)))
            uses = [CredentialUse(key[0], value[0], key[1], value[1]) for key, value in batch.items()]
            try:
                await registry.record_uses(uses)
            except BaseException:  # also when a deadline or the shutdown cancels the flush
                pending.update(batch)
                self._put_back(pending)
                raise
            written += len(uses)
        return written

    def _put_back(self, pending: dict[tuple[str, Address], tuple[str, int]]) -> None:
        """Buffer *pending* again; uses noted meanwhile are newer."""
        noted, self._pending = self._pending, pending
        for key, value in noted.items():
            if len(pending) < self._pending_max or key in pending:
                pending[key] = value
            else:
                self.dropped_count += 1


class RefusedCallers:
    """
    Buffers the callers that allowlists refused until the next flush.

    At most the `REFUSED_MAX` latest callers of *integrations_max* integrations are kept. Not thread-safe: use
    it on one event loop.
    """

    __slots__ = ("_integrations_max", "_pending")

    def __init__(self, integrations_max: int = REFUSED_INTEGRATIONS_MAX) -> None:
        """Buffer callers of at most *integrations_max* integrations."""
        self._pending: dict[str, dict[tuple[str, Address], int]] = {}
        self._integrations_max = integrations_max

    def __len__(self) -> int:
        return len(self._pending)

    def note(self, integration_id: str, credential_id: str, address: Address, now_us: int) -> None:
        """Buffer one refusal: at most two dict writes."""
        callers = self._pending.get(integration_id)
        if callers is None:
            if len(self._pending) >= self._integrations_max:
                return
            callers = self._pending[integration_id] = {}
        caller = (credential_id, address)
        if caller not in callers and len(callers) >= REFUSED_MAX:
            del callers[next(iter(callers))]
        callers.pop(caller, None)  # keeps the dict ordered by time: the oldest caller first
        callers[caller] = now_us

    async def flush(self, registry: Registry) -> None:
        """
        Write the buffer to *registry*, in bounded batches.

        Raises:
            RegistryError: the registry failed; unwritten callers stay buffered, as far as there is room.
        """
        pending, self._pending = self._pending, {}
        try:
            while pending:
                ids = list(pending)[: FLUSH_BATCH_MAX // REFUSED_MAX]
                await registry.record_refusals(
                    [
                        RefusedCaller(id, credential_id, address, at_us)
                        for id in ids
                        for (credential_id, address), at_us in pending[id].items()
                    ]
                )
                for id in ids:
                    del pending[id]
        except BaseException:
            for id, callers in pending.items():
                for (credential_id, address), at_us in callers.items():
                    if at_us > self._pending.get(id, {}).get((credential_id, address), 0):
                        self.note(id, credential_id, address, at_us)
            raise


class TokenUses:
    """Buffers the latest use of each administrator's token until the next flush; bounded."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: dict[str, TokenUse] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def note(self, token_id: str, source: str, now_us: int) -> None:
        """Buffer one use of a valid token."""
        if token_id in self._pending or len(self._pending) < TOKEN_USES_MAX:
            self._pending[token_id] = TokenUse(token_id, now_us, source)

    def merged_with(self, stored: Mapping[str, TokenUse]) -> dict[str, TokenUse]:
        """The uses that the registry has *stored*, updated with the buffered uses."""
        return {**stored, **self._pending}

    async def flush(self, registry: Registry) -> None:
        """
        Write the buffer to *registry*.

        Raises:
            RegistryError: the registry failed; unwritten uses stay buffered.
        """
        pending, self._pending = self._pending, {}
        try:
            while pending:
                batch = [pending[token_id] for token_id in list(pending)[:FLUSH_BATCH_MAX]]
                await registry.record_token_uses(batch)
                for use in batch:
                    del pending[use.token_id]
        except BaseException:
            self._pending = {**pending, **self._pending}
            raise

"""Uses of credentials, gathered on the hot path and written behind it."""

from __future__ import annotations

from sidecar.domain.cidr import Address
from sidecar.stores.registry.protocol import USES_MAX, CredentialUse, Registry, RegistryError

PENDING_MAX = 100_000
"""Pairs of credential and address between two flushes; about 20 MB at worst."""


class CredentialUses:
    """
    Remembers the latest use of each credential from each address until the next flush.

    At most *pending_max* pairs are kept; uses of further pairs are counted in `dropped_count`, which
    never costs a decision anything. Not thread-safe: one event loop notes and flushes.
    """

    __slots__ = ("_pending", "_pending_max", "dropped_count")

    def __init__(self, pending_max: int = PENDING_MAX) -> None:
        """Keep at most *pending_max* pairs."""
        self._pending: dict[tuple[str, Address], tuple[str, int]] = {}
        self._pending_max = pending_max
        self.dropped_count = 0

    def __len__(self) -> int:
        """Pairs that wait for the next flush."""
        return len(self._pending)

    def note(self, credential_id: str, integration_id: str, address: Address, now_us: int) -> None:
        """Note one use: a dict write, no more."""
        key = (credential_id, address)
        if len(self._pending) < self._pending_max or key in self._pending:
            self._pending[key] = (integration_id, now_us)
        else:
            self.dropped_count += 1

    async def flush(self, registry: Registry) -> int:
        """
        Write what waits to *registry*, in bounded batches.

        Returns:
            How many uses were written.

        Raises:
            RegistryError: the registry failed; what was not written waits on, as far as there is room.
        """
        pending, self._pending = self._pending, {}
        uses = [
            CredentialUse(credential_id, integration_id, address, at_us)
            for (credential_id, address), (integration_id, at_us) in pending.items()
        ]
        for first in range(0, len(uses), USES_MAX):
            try:
                await registry.record_uses(uses[first : first + USES_MAX])
            except RegistryError:
                self._put_back(uses[first:])
                raise
        return len(uses)

    def _put_back(self, uses: list[CredentialUse]) -> None:
        for use in uses:
            key = (use.credential_id, use.address)
            if key in self._pending:
                continue  # used again since
            if len(self._pending) < self._pending_max:
                self._pending[key] = (use.integration_id, use.at_us)
            else:
                self.dropped_count += 1

"""Uses of credentials, gathered on the hot path and written behind it."""

from __future__ import annotations

from sidecar.domain.cidr import Address
from sidecar.stores.registry.protocol import CredentialUse, Registry

PENDING_MAX = 100_000
"""Pairs of credential and address between two flushes; about 20 MB at worst."""
FLUSH_BATCH_MAX = 1_000
"""Uses written in one go: what the event loop, which decides meanwhile, builds in a millisecond."""


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
        written = 0
        while pending:
            batch = dict(pending.popitem() for _ in range(min(len(pending), FLUSH_BATCH_MAX)))
            uses = [CredentialUse(key[0], value[0], key[1], value[1]) for key, value in batch.items()]
            try:
                await registry.record_uses(uses)
            except BaseException:  # a deadline or the end cancels: nothing is lost by that
                pending.update(batch)
                self._put_back(pending)
                raise
            written += len(uses)
        return written

    def _put_back(self, pending: dict[tuple[str, Address], tuple[str, int]]) -> None:
        """Let *pending* wait on; what was noted since is newer."""
        noted, self._pending = self._pending, pending
        for key, value in noted.items():
            if len(pending) < self._pending_max or key in pending:
                pending[key] = value
            else:
                self.dropped_count += 1

"""
Claims of credential ids: every id is issued at most once over all partitions, by a claim before the commit.

A claim is one key in the partition of the credential id. The issued id is stored in the partition of the
integration, with the change. No script can access both partitions, so the claim comes first. A change that
fails leaves a claim without an issued id: the same integration may still use it, and another integration
takes it over after `CLAIM_GRACE_US`, once the first is barred from issuing the id. So two integrations can
never have the same id, also after a crash.
"""

from __future__ import annotations

from typing import Any

from sidecar.stores.registry.redis.keys import RegistryKeys
from sidecar.stores.registry.redis.nodes import Nodes
from sidecar.stores.registry.redis.reads import Reader
from sidecar.stores.registry.redis.scripts import BAR, CLAIM

CLAIM_GRACE_US = 60 * 1_000_000
"""A younger claim may belong to a change in progress, whose deadline is much shorter than this."""


class Claims:
    """Claims of credential ids."""

    def __init__(self, nodes: Nodes, keys: RegistryKeys) -> None:
        """Take over unused claims that are older than `CLAIM_GRACE_US`."""
        self._nodes = nodes
        self._keys = keys

    async def claim(self, credential_id: str, integration_id: str, deadline_s: float) -> bool:
        """
        Claim *credential_id* for *integration_id*; False = another integration has the claim.

        Whether the integration itself issued the id before is checked by the commit.
        """
        owner, age_us, claim = await self._ask(credential_id, integration_id, b"", deadline_s)
        if owner == integration_id:
            return True
        if age_us < CLAIM_GRACE_US or await self._bar(credential_id, owner, deadline_s):
            return False
        owner, _, _ = await self._ask(credential_id, integration_id, claim, deadline_s)
        return owner == integration_id

    async def is_used(self, reader: Reader, credential_id: str, integration_id: str) -> bool:
        """Whether *integration_id* may not issue *credential_id*; reads only."""
        partition = self._keys.partition_of(credential_id)
        [claim] = await reader.ask(partition, ("GET", self._keys.claim(credential_id)))
        if claim is None:
            return False
        owner = claim.decode().partition(" ")[2]
        issued = ("HGET", self._keys.of(owner, "k"), credential_id)
        [generation] = await reader.ask(self._keys.partition_of(owner), issued)
        return generation is not None and (owner == integration_id or generation != b"0")

    async def _ask(
        self, credential_id: str, integration_id: str, void: bytes, deadline_s: float
    ) -> tuple[str, int, bytes]:
        owner, age_us, claim = await self._run(
            self._keys.partition_of(credential_id),
            ("EVALSHA", CLAIM.sha, 1, self._keys.claim(credential_id), integration_id, void),
            deadline_s,
        )
        return owner.decode(), int(age_us), claim

    async def _bar(self, credential_id: str, owner: str, deadline_s: float) -> bool:
        """Return whether *owner* has issued the id; if not, bar it from doing so."""
        call = ("EVALSHA", BAR.sha, 1, self._keys.of(owner, "k"), credential_id)
        return bool(await self._run(self._keys.partition_of(owner), call, deadline_s))

    async def _run(self, partition: int, call: tuple[str | bytes | int, ...], deadline_s: float) -> Any:
        """Run a script that may be repeated: both scripts return the same reply the second time."""
        [reply] = await self._nodes.run(partition, [call], deadline_s)
        return reply

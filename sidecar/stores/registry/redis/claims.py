"""
Credential ids are used once in a registry's life, over all partitions: a claim, then the commit.

A claim is one key in the partition of the credential id; that the id was issued is on record in the
partition of the integration, written with the change. No script can reach both, so a claim comes first.
What a change that came to nothing leaves behind is a claim without an issue. It harms nobody: the same
integration may go on with it, and another one takes it over after `CLAIM_GRACE_US`, once the first is barred
from ever issuing it. So there is no moment, and no crash, after which two integrations can have one id.
"""

from __future__ import annotations

from typing import Any

from sidecar.stores.registry.redis.keys import RegistryKeys
from sidecar.stores.registry.redis.nodes import Nodes
from sidecar.stores.registry.redis.reads import Reader
from sidecar.stores.registry.redis.scripts import BAR, CLAIM

CLAIM_GRACE_US = 60 * 1_000_000
"""A younger claim may belong to a change that is being made; a change has a deadline well below that."""


class Claims:
    """Claims of credential ids."""

    def __init__(self, nodes: Nodes, keys: RegistryKeys, grace_us: int = CLAIM_GRACE_US) -> None:
        """Take over claims that are older than *grace_us* and void."""
        self._nodes = nodes
        self._keys = keys
        self._grace_us = grace_us

    async def claim(self, credential_id: str, integration_id: str, deadline_s: float) -> bool:
        """
        Claim *credential_id* for *integration_id*; False = another one has it.

        True does not say that the integration itself did not use it before: the commit looks at that.
        """
        owner, age_us, claim = await self._ask(credential_id, integration_id, b"", deadline_s)
        if owner == integration_id:
            return True
        if age_us < self._grace_us or await self._bar(credential_id, owner, deadline_s):
            return False
        owner, _, _ = await self._ask(credential_id, integration_id, claim, deadline_s)
        return owner == integration_id

    async def is_used(self, reader: Reader, credential_id: str, integration_id: str) -> bool:
        """Whether a change of *integration_id* that issues *credential_id* would be refused; reads only."""
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
        """Whether *owner* was issued the id; if not, it never will be."""
        call = ("EVALSHA", BAR.sha, 1, self._keys.of(owner, "k"), credential_id)
        return bool(await self._run(self._keys.partition_of(owner), call, deadline_s))

    async def _run(self, partition: int, call: tuple[str | bytes | int, ...], deadline_s: float) -> Any:
        """Both scripts may be repeated: the second time they say what the first one did."""
        [reply] = await self._nodes.run(partition, [call], deadline_s)
        return reply

"""
The names of the registry's keys; see `stores.redis.keys`.

In the partition of an integration:

    r:<integration>     hash   record, status, sequence (of its latest audit entry), search
    g:<integration>     text   generation of the record; take.lua reads it
    k:<integration>     hash   credential ids that were issued to it -> generation; 0 = barred
    w:<integration>     hash   webhook secret id -> sealed secret
    u:<integration>     hash   credential id -> '<time, us> <address, hex>' of its latest use
    s:<integration>     zset   addresses seen, by time (us)
    x:<integration>     zset   '<credential id> <address, hex>' that its allowlist refused, by time (us)

Once per partition:

    audit               stream the chain: entry <sequence>-0 with d (digest), t (time, us), b (body)
    a:<filter>:<name>   zset   sequences of the entries of one subject, actor or action
    changes             zset   every integration, by the sequence of its latest change
    ids                 zset   integrations that are not deleted, in the order of their ids
    settled             text   written to check that replicas have all earlier writes
    registry-id         text   the random id of the registry, the same in every partition
    epoch               text   sequence of the latest change of administrators known to the partition
    results             hash   idempotency key -> result
    results-age         zset   the same keys, by time (us)
    promises            hash   idempotency key -> the request that it is reserved for
    promises-age        zset   the same keys, by time (us)
    c:<credential>      text   the integration that claimed the id; in the partition of the credential id

Only in partition 0:

    admins              hash   administrator -> record
    admins-at           hash   administrator -> sequence of its latest audit entry
    tokens              hash   token id -> administrator, kept permanently
    replaced            text   ids of the registries that an operator replaced by this one
    remembered          text   the id that running sidecars follow although the store lacks it; for a minute
    sidecars            hash   sidecar -> revision
    sidecars-age        zset   the same sidecars, by time (us)
    token-uses          hash   token id -> '<time, us> <source>' of its latest use
    token-uses-age      zset   the same tokens, by time (us)
"""

from __future__ import annotations

from sidecar.stores.redis.keys import KeySpace

HOME = 0
"""The partition of the administrators."""


class RegistryKeys:
    """The registry's keys in one key space."""

    __slots__ = ("_space", "channel")

    def __init__(self, space: KeySpace) -> None:
        """Name keys in *space*; changes are published to `channel`."""
        self._space = space
        self.channel = f"{space.prefix}changes"

    @property
    def partitions(self) -> int:
        """The number of partitions; see `KeySpace.is_settled`."""
        return self._space.partitions

    def partition_of(self, name: str) -> int:
        """The partition of an integration, a credential id or an idempotency key."""
        return self._space.partition_of(name)

    def of(self, integration_id: str, kind: str) -> str:
        """The key of *kind* (one letter) of an integration."""
        return self._space.named(self.partition_of(integration_id), f"{kind}:{integration_id}")

    def named(self, partition: int, name: str) -> str:
        """The key *name* that exists once in *partition*."""
        return self._space.named(partition, name)

    def claim(self, credential_id: str) -> str:
        """The key of the claim of *credential_id*."""
        return self.of(credential_id, "c")

    def index(self, partition: int, filtered: str, name: str) -> str:
        """The index of the entries of *partition* whose *filtered* (subject, actor or action) is *name*."""
        return self._space.named(partition, f"a:{filtered}:{name}")

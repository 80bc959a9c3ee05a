"""
The registry compiled for decisions: an immutable view, replaced as a whole when the registry changes.

Credential index, binary digests, prefix tries and bucket sets are computed here once, not per decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sidecar.domain.bucket import BucketSet
from sidecar.domain.decision_rows import joined
from sidecar.domain.integrations import Credential, Integration, IntegrationError, Status
from sidecar.domain.prefix_trie import PrefixTrie
from sidecar.domain.sharded_map import ShardedMap


class CompiledIntegration:
    """
    One integration, compiled for decisions.

    `allowlist` None = off. `fragments` is a cache in which services store rendered answers of this
    integration; the services bound it. `is_outdated` = the registry has a newer record, which is not loaded
    yet. `count_slot` is where decisions about it are counted, 0 = not known; see `observe.integration_rows`.
    """

    __slots__ = (
        "allowlist",
        "buckets",
        "count_slot",
        "credentials",
        "fragments",
        "generation",
        "id",
        "is_outdated",
        "is_suspended",
        "limit_rpm",
        "name",
        "on_store_error",
        "record",
        "scopes",
        "shadow",
    )

    def __init__(self, record: Integration) -> None:
        """Compile *record*."""
        self.record = record
        self.id = record.id
        self.name = record.name
        self.generation = record.generation
        self.is_suspended = record.status is Status.SUSPENDED
        self.is_outdated = False
        self.scopes = record.scopes
        self.limit_rpm = record.rate_limit_rpm
        self.on_store_error = record.on_store_error
        self.shadow = record.shadow
        self.allowlist = PrefixTrie(record.ip_allowlist) if record.ip_allowlist else None
        self.buckets = BucketSet(record.id, record.generation, (record.id,), (record.quota,))
        self.credentials = tuple(CompiledCredential(credential, self) for credential in record.credentials)
        self.fragments: dict[Any, Any] = {}
        self.count_slot = 0


class CompiledCredential:
    """
    One credential, compiled for comparison; `digest` is the raw SHA-256 (32 bytes).

    `log_text` has its values in the decision log: the ids of the integration and the credential, and the
    record's generation.
    """

    __slots__ = ("digest", "expires_at_us", "id", "integration", "log_text")

    def __init__(self, record: Credential, integration: CompiledIntegration) -> None:
        """Compile *record*, which belongs to *integration*."""
        self.id = record.id
        self.digest = bytes.fromhex(record.digest.removeprefix("sha256:"))
        self.expires_at_us = record.expires_at_us
        self.integration = integration
        self.log_text = joined(integration.id, record.id, integration.generation)


class Snapshot:
    """
    An immutable view of the whole registry.

    `is_loaded` False = the registry was not loaded yet, so an unknown key may be valid.
    """

    __slots__ = ("credentials", "integrations", "is_loaded")

    def __init__(
        self,
        integrations: Mapping[str, CompiledIntegration],
        credentials: Mapping[str, CompiledCredential],
        is_loaded: bool = True,
    ) -> None:
        """Store two indexes: integrations by id, credentials by public id."""
        self.is_loaded = is_loaded
        self.integrations = integrations
        self.credentials = credentials

    @classmethod
    def compile(cls, records: Iterable[Integration], previous: Snapshot | None = None) -> Snapshot:
        """
        Compile *records*; integrations whose record is equal in *previous* are reused.

        Raises:
            IntegrationError: two integrations share an id, or two credentials do.
        """
        known = previous.integrations if previous is not None else {}
        integrations: dict[str, CompiledIntegration] = {}
        credentials: dict[str, CompiledCredential] = {}
        for record in records:
            if record.id in integrations:
                raise IntegrationError(f"two integrations have the id {record.id!r}: rename one")
            compiled = known.get(record.id)
            if compiled is None or compiled.record != record:
                compiled = CompiledIntegration(record)
            integrations[record.id] = compiled
            for credential in compiled.credentials:
                _require_unused(credential, credentials.get(credential.id))
                credentials[credential.id] = credential
        return cls(integrations, credentials)

    def sharded(self) -> Snapshot:
        """Return this view with sharded maps, of which `with_changes` makes cheap copies."""
        return Snapshot(ShardedMap.of(self.integrations), ShardedMap.of(self.credentials), self.is_loaded)

    def with_changes(
        self,
        changed: Iterable[Integration],
        deleted: Iterable[str] = (),
        prepared: Mapping[str, CompiledIntegration] | None = None,
    ) -> Snapshot:
        """
        Return this view with the records *changed* and without *deleted*.

        Only changed records are compiled; everything else is shared with this view, if it is `sharded`. An
        integration in *prepared* with an equal record is used instead of compiling.

        Raises:
            IntegrationError: two integrations would share a credential id.
        """
        integrations = ShardedMap.of(self.integrations).edit()
        credentials = ShardedMap.of(self.credentials).edit()
        fresh: dict[str, CompiledIntegration] = {}
        for record in changed:
            known = integrations.get(record.id)
            if known is not None and known.record == record:
                fresh.pop(record.id, None)
                continue
            ready = prepared.get(record.id) if prepared is not None else None
            fresh[record.id] = (
                ready if ready is not None and ready.record == record else CompiledIntegration(record)
            )
        for id in (*deleted, *fresh):
            removed = integrations.pop(id)
            for credential in removed.credentials if removed is not None else ():
                credentials.pop(credential.id)
        for id, compiled in fresh.items():
            integrations.put(id, compiled)
            for credential in compiled.credentials:
                _require_unused(credential, credentials.get(credential.id))
                credentials.put(credential.id, credential)
        return Snapshot(integrations.done(), credentials.done(), self.is_loaded)

    @classmethod
    def empty(cls) -> Snapshot:
        """Return the view of an empty registry: every key is unknown."""
        return cls({}, {})

    @classmethod
    def unloaded(cls) -> Snapshot:
        """Return the view before the registry is loaded: requests get `store_unavailable`."""
        return cls({}, {}, is_loaded=False)


def _require_unused(credential: CompiledCredential, other: CompiledCredential | None) -> None:
    """Raise if *other* already has the id of *credential*."""
    if other is not None:
        raise IntegrationError(
            f"credential id {credential.id!r} of {credential.integration.id!r} is also used by"
            f" {other.integration.id!r}: credential ids are unique in a registry"
        )

"""
Idempotency keys, kept for a day and up to a maximum number.

The result is written with the change, in the partition of the changed record. Before that, the request is
reserved in the partition of the key itself, so that a different request with the same key is always detected.
"""

from __future__ import annotations

import json
from typing import Any

from sidecar.domain.canonical import canonical_json
from sidecar.domain.changes import ChangeContext
from sidecar.stores.registry.base import idempotency_mismatch
from sidecar.stores.registry.protocol import IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_LIFETIME_US
from sidecar.stores.registry.redis.keys import RegistryKeys
from sidecar.stores.registry.redis.nodes import Command, Nodes, call_of
from sidecar.stores.registry.redis.reads import Reader
from sidecar.stores.registry.redis.scripts import PROMISE

KEYS_MIN = 64
"""Minimum number of keys per partition, however many partitions share `IDEMPOTENCY_KEYS_MAX`."""


def kept_max(partitions: int) -> int:
    """Maximum number of keys that one partition keeps."""
    return max(KEYS_MIN, IDEMPOTENCY_KEYS_MAX // partitions)


def field_of(actor_id: str, context: ChangeContext) -> str:
    """The hash field of this administrator's idempotency key; '' = no key."""
    return f"{actor_id}\n{context.idempotency_key}" if context.idempotency_key else ""


def result_commands(keys: RegistryKeys, partition: int, field: str) -> tuple[Command, Command]:
    """Commands that read the result under *field*, for `result_of`."""
    return (
        ("HGET", keys.named(partition, "results"), field),
        ("ZSCORE", keys.named(partition, "results-age"), field),
    )


def result_of(text: bytes | None, at_us: bytes | None, context: ChangeContext, now_us: int) -> str | None:
    """
    The stored result of this request; None = there is none.

    Raises:
        ConflictError: the key was used for another request.
    """
    if text is None or not _is_fresh(at_us, now_us):
        return None
    fingerprint, result = json.loads(text)
    if fingerprint != context.fingerprint:
        raise idempotency_mismatch()
    return str(result)


def kept_result(context: ChangeContext, result: str) -> str:
    """Encode *result* for storage."""
    return canonical_json([context.fingerprint, result])


class KeyReservations:
    """Reservations of idempotency keys for requests."""

    def __init__(self, nodes: Nodes, keys: RegistryKeys) -> None:
        """Store reservations under *keys*."""
        self._nodes = nodes
        self._keys = keys

    async def check(
        self, reader: Reader, field: str, context: ChangeContext, where: str, now_us: int
    ) -> None:
        """
        Check that *field* is not reserved for another request than this context about *where*.

        Raises:
            ConflictError: the key is reserved for another request.
        """
        partition = self._keys.partition_of(field)
        text, at_us = await reader.ask(
            partition,
            ("HGET", self._keys.named(partition, "promises"), field),
            ("ZSCORE", self._keys.named(partition, "promises-age"), field),
        )
        if text is not None and _is_fresh(at_us, now_us) and text.decode() != _promise(context, where):
            raise idempotency_mismatch()

    async def reserve(
        self, field: str, context: ChangeContext, where: str, now_us: int, deadline_s: float
    ) -> bool:
        """Reserve *field* for this request; False = it is reserved for another request."""
        partition = self._keys.partition_of(field)
        promise = _promise(context, where)
        call = call_of(
            PROMISE,
            [self._keys.named(partition, name) for name in ("promises", "promises-age")],
            [field, promise, now_us, IDEMPOTENCY_LIFETIME_US, kept_max(self._keys.partitions)],
        )
        [found] = await self._nodes.run(partition, [call], deadline_s)
        return bool(found.decode() == promise)


def _promise(context: ChangeContext, where: str) -> str:
    return canonical_json([context.fingerprint, where])


def _is_fresh(at_us: Any, now_us: int) -> bool:
    return at_us is not None and int(at_us) > now_us - IDEMPOTENCY_LIFETIME_US

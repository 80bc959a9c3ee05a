"""
Idempotency keys: for a day, and at most so many.

The result is written with the change, in the partition of what was changed. What a key stands for is noted
before that, in the partition of the key itself, so that another request under it is found wherever it leads.
"""

from __future__ import annotations

import json
from typing import Any

from sidecar.domain.canonical import canonical_json
from sidecar.domain.changes import ChangeContext
from sidecar.domain.refusals import Code, RefusedError, refusal
from sidecar.stores.registry.protocol import IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_LIFETIME_US
from sidecar.stores.registry.redis.keys import RegistryKeys
from sidecar.stores.registry.redis.nodes import Command, Nodes, call_of
from sidecar.stores.registry.redis.reads import Reader
from sidecar.stores.registry.redis.scripts import PROMISE

KEYS_MIN = 64
"""Keys that a partition keeps at least, however many partitions share `IDEMPOTENCY_KEYS_MAX`."""


def kept_max(partitions: int) -> int:
    """Keys that one partition keeps."""
    return max(KEYS_MIN, IDEMPOTENCY_KEYS_MAX // partitions)


def field_of(actor_id: str, context: ChangeContext) -> str:
    """The key of this administrator, as it is kept; '' = none."""
    return f"{actor_id}\n{context.idempotency_key}" if context.idempotency_key else ""


def result_commands(keys: RegistryKeys, partition: int, field: str) -> tuple[Command, Command]:
    """Read the result under *field*; see `result_of`."""
    return (
        ("HGET", keys.once(partition, "results"), field),
        ("ZSCORE", keys.once(partition, "results-age"), field),
    )


def result_of(text: bytes | None, at_us: bytes | None, context: ChangeContext, now_us: int) -> str | None:
    """
    The result that the key stands for; None = there is none.

    Raises:
        ConflictError: it stands for another request.
    """
    if text is None or not _is_fresh(at_us, now_us):
        return None
    fingerprint, result = json.loads(text)
    if fingerprint != context.fingerprint:
        raise mismatch()
    return str(result)


def kept_result(context: ChangeContext, result: str) -> str:
    """*result* as it is kept."""
    return canonical_json([context.fingerprint, result])


class KeyReservations:
    """What idempotency keys stand for."""

    def __init__(self, nodes: Nodes, keys: RegistryKeys) -> None:
        """Keep them in *keys*."""
        self._nodes = nodes
        self._keys = keys

    async def check(
        self, reader: Reader, field: str, context: ChangeContext, where: str, now_us: int
    ) -> None:
        """
        Look whether *field* may stand for a request with this context about *where*.

        Raises:
            ConflictError: it stands for another one.
        """
        partition = self._keys.partition_of(field)
        text, at_us = await reader.ask(
            partition,
            ("HGET", self._keys.once(partition, "promises"), field),
            ("ZSCORE", self._keys.once(partition, "promises-age"), field),
        )
        if text is not None and _is_fresh(at_us, now_us) and text.decode() != _promise(context, where):
            raise mismatch()

    async def make(
        self, field: str, context: ChangeContext, where: str, now_us: int, deadline_s: float
    ) -> bool:
        """Let *field* stand for this request; False = it stands for another one."""
        partition = self._keys.partition_of(field)
        promise = _promise(context, where)
        call = call_of(
            PROMISE,
            [self._keys.once(partition, name) for name in ("promises", "promises-age")],
            [field, promise, now_us, IDEMPOTENCY_LIFETIME_US, kept_max(self._keys.partitions)],
        )
        [found] = await self._nodes.run(partition, [call], deadline_s)
        return bool(found.decode() == promise)


def mismatch() -> RefusedError:
    """The refusal of another request under a key that was used."""
    return refusal(
        Code.IDEMPOTENCY_MISMATCH,
        "idempotency_key",
        "this idempotency key was used for a different request",
        "send a fresh key with each new request, and the same one only to repeat it",
    )


def _promise(context: ChangeContext, where: str) -> str:
    return canonical_json([context.fingerprint, where])


def _is_fresh(at_us: Any, now_us: int) -> bool:
    return at_us is not None and int(at_us) > now_us - IDEMPOTENCY_LIFETIME_US

"""Data that may be lost in a crash: uses of credentials and tokens, seen addresses, live sidecars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from sidecar.domain.changes import SIDECAR_LIFETIME_US, SIDECARS_MAX, LiveSidecar, Revision
from sidecar.domain.cidr import Address
from sidecar.domain.lifecycle.outcome import ADDRESSES_SEEN_MAX
from sidecar.stores.redis.scripts import Script
from sidecar.stores.registry.protocol import (
    REFUSED_MAX,
    REFUSED_WINDOW_US,
    SEEN_WINDOW_US,
    TOKEN_USES_MAX,
    CredentialUse,
    RefusedCaller,
    TokenUse,
)
from sidecar.stores.registry.redis.keys import HOME
from sidecar.stores.registry.redis.nodes import Command, Word, call_of
from sidecar.stores.registry.redis.reads import Reader, all_of, pairs, seen_command, seen_of
from sidecar.stores.registry.redis.replies import refused_caller_of, token_use_of
from sidecar.stores.registry.redis.scripts import ANNOUNCE, REFUSE, TOKEN_USE, USE

SEEN_TTL_MS = 2 * SEEN_WINDOW_US // 1_000
"""TTL of the addresses of an integration without requests; each address also has its own time."""
_USES_PER_CALL = 500


async def record_uses(reader: Reader, uses: Sequence[CredentialUse]) -> None:
    """Record the latest use of each credential and the addresses of each integration, both bounded."""
    words = [(use.integration_id, (use.credential_id, use.at_us, use.address.hex())) for use in uses]
    await _record(reader, USE, "rkus", (ADDRESSES_SEEN_MAX, SEEN_WINDOW_US, SEEN_TTL_MS), words)


async def _record(
    reader: Reader,
    script: Script,
    kinds: str,
    first: Sequence[Word],
    items: Sequence[tuple[str, Sequence[Word]]],
) -> None:
    """
    Run *script* for *items*, pairs of integration and words, in bounded calls per integration.

    Each call gets the keys of *kinds* of the integration, and the arguments *first* and the items' words.
    """
    by_integration: dict[str, list[Sequence[Word]]] = {}
    for integration_id, words in items:
        by_integration.setdefault(integration_id, []).append(words)
    by_partition: dict[int, list[Command]] = {}
    for integration_id, some in by_integration.items():
        keys = [reader.keys.of(integration_id, kind) for kind in kinds]
        calls = by_partition.setdefault(reader.keys.partition_of(integration_id), [])
        for start in range(0, len(some), _USES_PER_CALL):
            arguments = chain(first, *some[start : start + _USES_PER_CALL])
            calls.append(call_of(script, keys, tuple(arguments)))
    await all_of(*(reader.ask(partition, *calls) for partition, calls in by_partition.items()))


async def addresses_seen(reader: Reader, integration_id: str, now_us: int) -> tuple[Address, ...]:
    """The addresses seen in the last hour, newest first."""
    partition = reader.keys.partition_of(integration_id)
    [reply] = await reader.ask(partition, seen_command(reader.keys, integration_id, now_us))
    return seen_of(reply)


async def record_refusals(reader: Reader, refusals: Sequence[RefusedCaller]) -> None:
    """Record refused callers; keep the `REFUSED_MAX` latest of each integration."""
    words = [
        (refusal.integration_id, (f"{refusal.credential_id} {refusal.address.hex()}", refusal.at_us))
        for refusal in refusals
    ]
    await _record(reader, REFUSE, "rx", (REFUSED_MAX, REFUSED_WINDOW_US // 1_000), words)


async def refused_callers(reader: Reader, integration_id: str, now_us: int) -> tuple[RefusedCaller, ...]:
    """The callers that the allowlist refused within `REFUSED_WINDOW_US`, newest first."""
    partition, key = reader.keys.partition_of(integration_id), reader.keys.of(integration_id, "x")
    lowest = f"({now_us - REFUSED_WINDOW_US}"
    [reply] = await reader.ask(
        partition, ("ZREVRANGEBYSCORE", key, "+inf", lowest, "WITHSCORES", "LIMIT", 0, REFUSED_MAX)
    )
    return tuple(refused_caller_of(integration_id, caller, at_us) for caller, at_us in pairs(reply))


async def record_token_uses(reader: Reader, uses: Sequence[TokenUse]) -> None:
    """Record the latest use of each token; keep the `TOKEN_USES_MAX` latest."""
    keys = [reader.keys.named(HOME, name) for name in ("tokens", "token-uses", "token-uses-age")]
    calls: list[Command] = []
    for first in range(0, len(uses), _USES_PER_CALL):
        arguments: list[str | int] = [TOKEN_USES_MAX]
        for use in uses[first : first + _USES_PER_CALL]:
            arguments += [use.token_id, use.at_us, use.source]
        calls.append(call_of(TOKEN_USE, keys, arguments))
    await reader.ask(HOME, *calls)


async def token_uses(reader: Reader) -> Mapping[str, TokenUse]:
    """The last use of each token."""
    [reply] = await reader.ask(HOME, ("HGETALL", reader.keys.named(HOME, "token-uses")))
    return {token_id.decode(): token_use_of(token_id, text) for token_id, text in pairs(reply)}


async def announce(reader: Reader, sidecar_id: str, revision: Revision, now_us: int) -> None:
    """Record that a sidecar is alive; delete those that are not. *now_us* 0 = the server's clock."""
    keys = [reader.keys.named(HOME, name) for name in ("sidecars", "sidecars-age")]
    arguments = (sidecar_id, str(revision), now_us, SIDECAR_LIFETIME_US, SIDECARS_MAX)
    await reader.ask(HOME, call_of(ANNOUNCE, keys, arguments))


async def live_sidecars(reader: Reader, now_us: int) -> tuple[LiveSidecar, ...]:
    """The sidecars that announced themselves within `SIDECAR_LIFETIME_US`."""
    lowest = f"({now_us - SIDECAR_LIFETIME_US}"
    kept, ages = await reader.ask(
        HOME,
        ("HGETALL", reader.keys.named(HOME, "sidecars")),
        ("ZRANGEBYSCORE", reader.keys.named(HOME, "sidecars-age"), lowest, "+inf", "WITHSCORES"),
    )
    revisions = dict(pairs(kept))
    return tuple(
        LiveSidecar(id.decode(), Revision.parse(revisions[id].decode()), int(at_us))
        for id, at_us in sorted(pairs(ages))
        if id in revisions
    )

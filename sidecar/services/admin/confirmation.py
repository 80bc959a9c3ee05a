"""Waiting until a change is in force: on this sidecar, and on request on every live one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic_ns

from typing_extensions import TypedDict

from sidecar.domain.changes import LiveSidecar, Position, unconfirmed
from sidecar.observe.logs import log_event
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.stores.registry.protocol import Registry, RegistryError

LOOK_INTERVAL_S = 0.05
WAITING_NAMED_MAX = 100
"""Sidecars that an answer names; a longer list helps nobody."""

_LOG = logging.getLogger(__name__)


class ConfirmationView(TypedDict):
    """
    Which live sidecars decide by a change.

    `waiting_for` names those that do not yet. `is_complete` false with nobody named = the registry could
    not tell; the change itself was made all the same.
    """

    is_complete: bool
    sidecars: int
    waiting_for: list[str]
    took_ms: int


async def put_in_force(context: AdminContext, positions: Sequence[Position]) -> bool:
    """
    Wait until this sidecar decides by the changes at *positions*; False = not within its bound.

    The changes are made: that this sidecar cannot follow them now must not look like their failure.
    """
    try:
        return all([await context.put_in_force(position) for position in latest(positions)])
    except RegistryError as error:
        log_event(_LOG, logging.WARNING, "a change cannot be put in force here yet", error=str(error))
        return False


async def confirm(
    context: AdminContext, call: Call, positions: Sequence[Position], wait_s: float
) -> ConfirmationView:
    """Wait up to *wait_s* until every live sidecar has confirmed the changes at *positions*."""
    began_ns = monotonic_ns()
    confirmation = await confirmed(context.registry, positions, wait_s)
    call.waited_ns += monotonic_ns() - began_ns
    return confirmation


async def confirmed(registry: Registry, positions: Sequence[Position], wait_s: float) -> ConfirmationView:
    """`confirm` for who has nothing but the registry."""
    began_ns = monotonic_ns()
    last = latest(positions)
    sidecars: tuple[LiveSidecar, ...] = ()
    waiting: list[str] = []
    is_complete = False
    try:
        async with asyncio.timeout(wait_s):
            while True:
                sidecars = await registry.live_sidecars()
                waiting = sorted({one for position in last for one in unconfirmed(sidecars, position)})
                if not waiting:
                    is_complete = True
                    break
                await asyncio.sleep(LOOK_INTERVAL_S)
    except TimeoutError:
        pass
    except RegistryError as error:
        # As in `put_in_force`.
        log_event(_LOG, logging.WARNING, "sidecars cannot be asked whether they follow", error=str(error))
        sidecars, waiting = (), []
    took_ns = monotonic_ns() - began_ns
    return {
        "is_complete": is_complete,
        "sidecars": len(sidecars),
        "waiting_for": waiting[:WAITING_NAMED_MAX],
        "took_ms": took_ns // 1_000_000,
    }


def latest(positions: Sequence[Position]) -> tuple[Position, ...]:
    """The last position of each partition: whoever has followed so far has followed the others."""
    last: dict[int, int] = {}
    for partition, sequence in positions:
        last[partition] = max(sequence, last.get(partition, sequence))
    return tuple(Position(partition, last[partition]) for partition in sorted(last))

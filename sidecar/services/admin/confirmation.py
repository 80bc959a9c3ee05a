"""Waits until a change is in force: on this sidecar, and on request on every live sidecar."""

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
"""Maximum number of sidecars that an answer names."""

_LOG = logging.getLogger(__name__)


class ConfirmationView(TypedDict):
    """
    Which live sidecars have applied a change.

    `waiting_for` names those that have not. `is_complete` false with an empty `waiting_for` = the registry
    could not list the sidecars; the change was made.
    """

    is_complete: bool
    sidecars: int
    waiting_for: list[str]
    took_ms: int


async def put_in_force(context: AdminContext, positions: Sequence[Position]) -> bool:
    """
    Wait until this sidecar has applied the changes at *positions*; False = not in time.

    The changes are committed, so a failure to apply them here is not an error of the call.
    """
    try:
        return all([await context.put_in_force(position) for position in latest(positions)])
    except RegistryError as error:
        log_event(_LOG, logging.WARNING, "cannot apply a change on this sidecar yet", error=str(error))
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
    """As `confirm`, with only a registry."""
    began_ns = monotonic_ns()
    last = latest(positions)
    sidecars: tuple[LiveSidecar, ...] = ()
    waiting: list[str] = []
    is_complete = False
    try:
        async with asyncio.timeout(wait_s):
            while True:
                sidecars = await registry.live_sidecars()
                waiting = sorted(
                    {sidecar for position in last for sidecar in unconfirmed(sidecars, position)}
                )
                if not waiting:
                    is_complete = True
                    break
                await asyncio.sleep(LOOK_INTERVAL_S)
    except TimeoutError:
        pass
    except RegistryError as error:
        # As in `put_in_force`.
        log_event(_LOG, logging.WARNING, "cannot list the sidecars that confirmed a change", error=str(error))
        sidecars, waiting = (), []
    took_ns = monotonic_ns() - began_ns
    return {
        "is_complete": is_complete,
        "sidecars": len(sidecars),
        "waiting_for": waiting[:WAITING_NAMED_MAX],
        "took_ms": took_ns // 1_000_000,
    }


def latest(positions: Sequence[Position]) -> tuple[Position, ...]:
    """Return the last position of each partition, which includes the earlier ones."""
    last: dict[int, int] = {}
    for partition, sequence in positions:
        last[partition] = max(sequence, last.get(partition, sequence))
    return tuple(Position(partition, last[partition]) for partition in sorted(last))

"""Takes whose record was superseded: how many may wait, and what further ones are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

from sidecar.stores.protocols import StoreFault, TakeDone
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.superseded import WAITING_MAX, SupersededTakes
from sidecar.stores.redis.take_call import CompiledSet, Group
from tests.store_harness import bucket
from tests.unit.stores.redis.fakes import FakeLoop


def test_superseded__one_too_many_is_reported_no_fault_that_a_policy_could_admit() -> None:
    """The bound holds, and whoever comes later hears that the record is old, not that the store is away."""
    takes = SupersededTakes(cast(asyncio.AbstractEventLoop, FakeLoop()))
    compiled = CompiledSet(bucket("acme"), KeySpace("t:"), True)
    reported: list[StoreFault] = []

    def notify(waiting: Iterable[TakeDone], fault: StoreFault) -> None:
        reported.append(fault)

    for _ in range(WAITING_MAX + 1):
        takes.hold(Group(compiled), 2, notify, lambda owner, generation, done: None)
    assert len(takes) == WAITING_MAX
    assert reported == [StoreFault.SUPERSEDED]

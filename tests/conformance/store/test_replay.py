"""A replay repeats what sidecars decided with buckets in a shared Redis."""

from __future__ import annotations

import asyncio
from random import Random

from sidecar.domain.answers import Decision
from sidecar.domain.policy import AccessRequest
from sidecar.domain.replay import LoggedRequest, Replay
from sidecar.services.decider import Decider
from tests.building import CLIENT_IP, ManualClock, make_decider, make_integration, make_key, make_policy
from tests.replaying import logged
from tests.store_harness import StoreHarness
from tests.waiting import PATIENCE_S, run

KEY = make_key()
POLICY = make_policy()
RECORD = make_integration(KEY, rate_limit_rpm=600, burst=5, allowlist=[CLIENT_IP])
PATHS = ("/v1/orders/42", "/v1/orders/43", "/v1/finance/2")


async def decided(decider: Decider, request: AccessRequest) -> Decision:
    """The decision about *request*."""
    done: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
    decision = decider.decide(request, None, lambda late, context: done.set_result(late), None)
    return decision if decision is not None else await done


def test_replay__repeats_what_a_fleet_decided() -> None:
    """Two sidecars, requests that meet in one batch, takes and peeks in any order."""
    random = Random(15)

    async def scenario() -> list[LoggedRequest]:
        clock = ManualClock()
        harness = StoreHarness("standalone")
        stores = [harness.store(clock) for _ in range(2)]
        await asyncio.gather(*(store.start() for store in stores))
        deciders = [
            make_decider(RECORD, policy=POLICY, store=store, clock=clock, store_timeout_s=PATIENCE_S)
            for store in stores
        ]
        rows = []
        for _ in range(60):
            clock.advance(us=random.randrange(400_000))
            requests = [
                AccessRequest("GET", random.choice(PATHS), {"x-api-key": KEY.api_key}.get, peer)
                for peer in random.choices((CLIENT_IP, "192.0.2.1"), (9, 1), k=random.randrange(1, 6))
            ]
            decisions = await asyncio.gather(
                *(decided(random.choice(deciders), request) for request in requests)
            )
            rows += [
                logged(request, decision, POLICY, clock.now_us)
                for request, decision in zip(requests, decisions, strict=True)
            ]
        await asyncio.gather(*(store.close() for store in stores))
        return rows

    rows = run(scenario())
    assert {row.reason for row in rows} == {"ok", "ip_not_allowed", "scope_missing", "rate_limited"}
    replay = Replay(POLICY, RECORD)
    for row in sorted(rows[len(rows) // 4 :], key=replay.sort_key):
        outcome = replay.decide(row)
        assert outcome.taken is not None
        assert (outcome.reason.label, outcome.taken.reset_at_us) == (row.reason, row.reset_at)

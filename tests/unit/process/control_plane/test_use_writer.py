"""Which uses of credentials are noted, and how they reach the registry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from sidecar.domain.cidr import parse_address
from sidecar.domain.client_address import PeerAddress
from sidecar.domain.credential_sources import CredentialSources
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest, Policy
from sidecar.domain.route_readings import RouteReadings
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.observe.metrics import Metrics
from sidecar.process import use_writer
from sidecar.process.use_writer import CredentialUseWriter, use_recorder
from sidecar.services.decider import Decider
from sidecar.stores.registry.protocol import (
    REFUSED_MAX,
    CredentialUse,
    RefusedCaller,
    Registry,
    RegistryUnavailableError,
)
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.uses import FLUSH_BATCH_MAX, CredentialUses, RefusedCallers
from tests.administration import LIFECYCLE
from tests.building import (
    CLIENT_IP,
    NOW_US,
    ManualClock,
    make_decider,
    make_integration,
    make_key,
    make_metrics,
)
from tests.waiting import until

KEY = make_key()
HERE = parse_address(CLIENT_IP)
WRITTEN = "sidecar_credential_uses_written_total"
DROPPED = "sidecar_credential_uses_dropped_total"


def noting_decider(
    uses: CredentialUses, clock: ManualClock, refusals: RefusedCallers | None = None, **fields: object
) -> Decider:
    """A decider over one integration with one token, which keeps note in *uses*."""
    policy = Policy(
        CredentialSources(), PeerAddress(), RouteReadings(()), ScopeCatalogue(), resolves_every_address=True
    )
    record = make_integration(KEY, rate_limit_rpm=1, burst=1, **fields)  # type: ignore[arg-type]
    decider = make_decider(record, policy=policy, clock=clock)
    decider.note_use = use_recorder(uses, RefusedCallers() if refusals is None else refusals)
    return decider


def decide(
    decider: Decider, scope: str = "orders:read", key: str = KEY.api_key, peer: str = CLIENT_IP
) -> Reason:
    """Decide one request."""
    request = AccessRequest("GET", "/v1/orders", {"x-api-key": key}.get, peer, scope)
    decision = decider.decide(request, None, lambda decision, context: None, None)
    assert decision is not None
    return decision.reason


class Listener:
    """The one method of a registry that uses are written by."""

    def __init__(self) -> None:
        """Nothing was written."""
        self.reported: set[tuple[str, str, bytes, int]] = set()

    async def record_uses(self, uses: Sequence[CredentialUse]) -> None:
        """Keep *uses*."""
        self.reported |= {tuple(use) for use in uses}


class Doorkeeper:
    """The one method of a registry that writes refused callers; it fails as often as requested."""

    def __init__(self, failures: int = 0) -> None:
        """Nothing was written."""
        self.calls: list[tuple[RefusedCaller, ...]] = []
        self._failures = failures

    async def record_refusals(self, refusals: Sequence[RefusedCaller]) -> None:
        """Keep *refusals*."""
        if self._failures:
            self._failures -= 1
            raise RegistryUnavailableError("down")
        self.calls.append(tuple(refusals))


def written_by(uses: CredentialUses) -> set[tuple[str, str, bytes, int]]:
    """What a flush writes."""
    listener = Listener()
    asyncio.run(uses.flush(cast(Registry, listener)))
    return listener.reported


def count(metrics: Metrics, name: str) -> int:
    """The value of a counter."""
    return metrics.values[metrics.slot(name)]


def test_note__accepted_keys() -> None:
    """A use is reported with its credential and time, also over the limit or out of scope."""
    uses, clock = CredentialUses(), ManualClock()
    decider = noting_decider(uses, clock)
    assert decide(decider) is Reason.OK
    clock.advance(us=7)
    assert decide(decider) is Reason.RATE_LIMITED
    assert decide(decider, scope="finance:read", peer="192.0.2.9") is Reason.SCOPE_MISSING
    there = parse_address("192.0.2.9")
    assert written_by(uses) == {
        (KEY.credential_id, "acme", HERE, NOW_US + 7),
        (KEY.credential_id, "acme", there, NOW_US + 7),
    }


@pytest.mark.parametrize(
    ("fields", "asked", "reason"),
    [
        ({}, {"key": make_key().api_key}, Reason.UNKNOWN_CREDENTIAL),
        ({"expires_at_us": NOW_US}, {}, Reason.EXPIRED_CREDENTIAL),
        ({"allowlist": ("192.0.2.0/24",)}, {}, Reason.IP_NOT_ALLOWED),
        ({}, {"peer": "nobody knows"}, Reason.OK),
    ],
)
def test_note__nothing_else(fields: dict[str, object], asked: dict[str, str], reason: Reason) -> None:
    """A key that is not accepted is no use, nor one from a refused address, nor from an unknown one."""
    uses = CredentialUses()
    assert decide(noting_decider(uses, ManualClock(), **fields), **asked) is reason
    assert len(uses) == 0


def test_note_refusal__with_the_key_and_the_address() -> None:
    """A valid key from a refused address is kept apart; an address that cannot be worked out, too."""
    uses, refusals, clock = CredentialUses(), RefusedCallers(), ManualClock()
    decider = noting_decider(uses, clock, refusals, allowlist=("192.0.2.0/24",))
    for peer in ("203.0.113.7", "nobody knows", "203.0.113.7"):
        clock.advance(us=1)
        assert decide(decider, peer=peer) is Reason.IP_NOT_ALLOWED
    keeper = Doorkeeper()
    asyncio.run(refusals.flush(cast(Registry, keeper)))
    key = KEY.credential_id
    assert keeper.calls == [
        (
            RefusedCaller("acme", key, b"", NOW_US + 2),
            RefusedCaller("acme", key, parse_address("203.0.113.7"), NOW_US + 3),
        )
    ]
    assert (len(uses), len(refusals)) == (0, 0)


def test_note_refusal__is_bounded() -> None:
    """A flood from many addresses keeps the latest of each integration, and of a bounded number of them."""
    refusals = RefusedCallers(integrations_max=2)
    for number in range(3 * REFUSED_MAX):
        for integration in ("acme", "bolt", "coil"):
            refusals.note(integration, "key", number.to_bytes(4), number)
    keeper = Doorkeeper()
    asyncio.run(refusals.flush(cast(Registry, keeper)))
    kept = [caller for call in keeper.calls for caller in call]
    assert {caller.integration_id for caller in kept} == {"acme", "bolt"}
    assert [caller.at_us for caller in kept if caller.integration_id == "acme"] == list(
        range(2 * REFUSED_MAX, 3 * REFUSED_MAX)
    )


def test_flush_refusals__a_registry_that_fails() -> None:
    """What was not written waits on; what was noted meanwhile is newer."""
    refusals = RefusedCallers()
    refusals.note("acme", "key", HERE, 1)
    refusals.note("acme", "key", b"", 1)
    keeper = Doorkeeper(failures=1)
    with pytest.raises(RegistryUnavailableError):
        asyncio.run(refusals.flush(cast(Registry, keeper)))
    refusals.note("acme", "key", HERE, 2)
    asyncio.run(refusals.flush(cast(Registry, keeper)))
    assert {(caller.address, caller.at_us) for call in keeper.calls for caller in call} == {
        (HERE, 2),
        (b"", 1),
    }


async def test_flush__counts_and_tells(tmp_path: Path) -> None:
    """What was written and what was dropped is counted, each once."""
    metrics, uses = make_metrics(), CredentialUses(pending_max=2)
    registry = await SqliteRegistry.open(tmp_path / "registry.sqlite", LIFECYCLE)
    keeping = CredentialUseWriter(uses, RefusedCallers(), registry, metrics)
    for number in range(5):
        uses.note("live", "acme", number.to_bytes(4), NOW_US)
    await keeping.flush()
    await keeping.flush()
    assert (count(metrics, WRITTEN), count(metrics, DROPPED)) == (2, 3)
    uses.note("live", "acme", HERE, NOW_US)
    await keeping.end()
    assert (count(metrics, WRITTEN), count(metrics, DROPPED)) == (3, 3)
    await registry.aclose()


def test_flush__a_registry_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What fails waits on, is reported once until it works again, and never ends the keeping."""

    async def scenario() -> None:
        metrics, uses = make_metrics(), CredentialUses()
        registry = await SqliteRegistry.open(tmp_path / "registry.sqlite", LIFECYCLE)
        await registry.aclose()
        keeping = CredentialUseWriter(uses, RefusedCallers(), registry, metrics)
        uses.note("live", "acme", HERE, NOW_US)
        for _ in range(3):
            await keeping.flush()
        assert len(uses) == 1
        assert count(metrics, WRITTEN) == 0

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["uses of credentials not written; retrying"]


def test_end__is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """At the end a registry that hangs is given up, and what it did not take is reported."""
    monkeypatch.setattr(use_writer, "LAST_FLUSH_TIMEOUT_S", 0.01)

    class Stuck(Listener):
        async def record_uses(self, uses: Sequence[CredentialUse]) -> None:
            await asyncio.Event().wait()

    uses = CredentialUses()
    uses.note("live", "acme", HERE, NOW_US)
    with caplog.at_level(logging.WARNING):
        asyncio.run(
            CredentialUseWriter(uses, RefusedCallers(), cast(Registry, Stuck()), make_metrics()).end()
        )
    assert [record.getMessage() for record in caplog.records] == ["uses of credentials lost at shutdown"]
    assert len(uses) == 1


async def test_run__writes_by_itself(tmp_path: Path) -> None:
    """Once it runs, uses reach the registry without anybody asking."""
    metrics, uses = make_metrics(), CredentialUses()
    registry = await SqliteRegistry.open(tmp_path / "registry.sqlite", LIFECYCLE)
    keeping = CredentialUseWriter(uses, RefusedCallers(), registry, metrics, flush_interval_s=0.001)
    task = asyncio.create_task(keeping.run())
    for number in range(FLUSH_BATCH_MAX + 1):
        uses.note("live", "acme", number.to_bytes(4), NOW_US)
    await until(lambda: count(metrics, WRITTEN) > FLUSH_BATCH_MAX)
    task.cancel()
    await registry.aclose()

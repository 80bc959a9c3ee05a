"""The registry's contract: when credentials were last used and from where, and the warning that needs it."""

from __future__ import annotations

import pytest

from sidecar.domain.cidr import parse_address
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import ADDRESSES_SEEN_MAX
from sidecar.domain.refusals import Code, RefusedError
from sidecar.stores.registry.protocol import (
    REFUSED_MAX,
    REFUSED_WINDOW_US,
    SEEN_WINDOW_US,
    USES_MAX,
    CredentialUse,
    LastUse,
    RefusedCaller,
    RegistryError,
    TokenUse,
)
from sidecar.stores.registry.uses import CredentialUses, TokenUses
from tests.administration import HOUR_US, ID, MINUTE_US, NOW_US, create, credential, request, set_up
from tests.conformance.registry.registry_harness import RegistryHarness

HERE, THERE = parse_address("192.0.2.1"), parse_address("2001:db8::1")


def use(credential_id: str, address: bytes = HERE, at_us: int = NOW_US, of: str = ID) -> CredentialUse:
    """One use."""
    return CredentialUse(credential_id, of, address, at_us)


def record(harness: RegistryHarness, *uses: CredentialUse) -> None:
    """Note *uses*."""
    harness.run(harness.registry.record_uses(uses))


def test_uses__the_latest_counts(harness: RegistryHarness) -> None:
    """A later use replaces an earlier one, in whichever order they arrive."""
    harness.apply(set_up())
    assert harness.run(harness.registry.last_uses(ID)) == {}
    record(harness, use("live", HERE, NOW_US + 2), use("live", THERE, NOW_US + 1))
    assert harness.run(harness.registry.last_uses(ID)) == {"live": LastUse(NOW_US + 2, HERE)}
    record(harness, use("live", THERE, NOW_US + 3))
    record(harness, use("live", HERE, NOW_US))
    assert harness.run(harness.registry.last_uses(ID)) == {"live": LastUse(NOW_US + 3, THERE)}


def test_uses__tell_which_credential_is_still_in_use_during_an_overlap(harness: RegistryHarness) -> None:
    """During a rotation both credentials show their own last use."""
    harness.apply(set_up())
    rotate = c.RotateCredential(
        integration_id=ID, credential_id="live", credential=credential("next"), overlap_us=HOUR_US
    )
    harness.apply(rotate)
    record(harness, use("live", HERE, NOW_US + 5), use("next", THERE, NOW_US + 4))
    assert harness.run(harness.registry.last_uses(ID)) == {
        "live": LastUse(NOW_US + 5, HERE),
        "next": LastUse(NOW_US + 4, THERE),
    }


def test_uses__of_what_does_not_exist_are_dropped(harness: RegistryHarness) -> None:
    """A stray use makes no rows: only credentials and integrations that exist are remembered."""
    harness.apply(set_up())
    record(harness, use("nosuch"), use("live", of="nosuch"))
    assert harness.run(harness.registry.last_uses(ID)) == {}
    assert harness.run(harness.registry.last_uses("nosuch")) == {}
    assert harness.run(harness.registry.addresses_seen("nosuch")) == ()


def test_uses__are_no_change_of_the_registry(harness: RegistryHarness) -> None:
    """Use leaves record, revision and audit log alone."""
    harness.apply(set_up())
    revision = harness.run(harness.registry.revision())
    record(harness, use("live"))
    assert harness.run(harness.registry.revision()) == revision
    assert harness.get(ID).generation == 1


def test_uses__of_one_call_are_bounded(harness: RegistryHarness) -> None:
    """More uses than one call takes are refused."""
    with pytest.raises(RefusedError) as caught:
        record(harness, *[use("live")] * (USES_MAX + 1))
    assert caught.value.code is Code.TOO_MANY


def test_addresses_seen__of_the_last_hour_the_latest_first(harness: RegistryHarness) -> None:
    """Addresses are forgotten after an hour."""
    harness.apply(set_up())
    record(harness, use("live", HERE, NOW_US), use("live", THERE, NOW_US + MINUTE_US))
    assert harness.run(harness.registry.addresses_seen(ID)) == (THERE, HERE)
    harness.clock.advance(us=SEEN_WINDOW_US)
    assert harness.run(harness.registry.addresses_seen(ID)) == (THERE,)
    harness.clock.advance(us=MINUTE_US)
    assert harness.run(harness.registry.addresses_seen(ID)) == ()


def test_addresses_seen__are_bounded(harness: RegistryHarness) -> None:
    """An integration that calls from everywhere fills no store: the latest addresses are kept."""
    harness.apply(set_up())
    many = [use("live", number.to_bytes(4), NOW_US + number) for number in range(2 * ADDRESSES_SEEN_MAX)]
    record(harness, *many)
    seen = harness.run(harness.registry.addresses_seen(ID))
    assert seen == tuple(use.address for use in reversed(many[ADDRESSES_SEEN_MAX:]))


def test_lock_out__warns_before_and_with_the_change(harness: RegistryHarness) -> None:
    """Preview and commit both name the addresses of the last hour that a new allowlist would refuse."""
    harness.apply(create(credentials=(credential("live"),)))
    harness.apply(c.SetAllowlist(integration_id=ID, entries=("198.51.100.0/24",)))
    record(harness, use("live", HERE))
    enable = c.EnableAllowlist(integration_id=ID)
    outcome = harness.run(harness.registry.preview(request(enable)))
    made = harness.apply(enable)
    for notices in (outcome.notices, made.notices):
        assert [notice.code for notice in notices] == ["lock_out"]
        assert "192.0.2.1" in notices[0].message


def test_credential_uses__gathers_and_flushes(harness: RegistryHarness) -> None:
    """What the hot path notes is written with the next flush, the latest use of each address."""
    harness.apply(set_up())
    uses = CredentialUses()
    for number in range(5):
        uses.note("live", ID, HERE, NOW_US + number)
    uses.note("live", ID, THERE, NOW_US + 1)
    assert len(uses) == 2
    assert harness.run(uses.flush(harness.registry)) == 2
    assert len(uses) == 0
    assert harness.run(harness.registry.last_uses(ID)) == {"live": LastUse(NOW_US + 4, HERE)}
    assert set(harness.run(harness.registry.addresses_seen(ID))) == {HERE, THERE}
    assert harness.run(uses.flush(harness.registry)) == 0


def test_credential_uses__are_bounded_and_counted() -> None:
    """When the memory for uses is full, further pairs are dropped and counted; known ones still move on."""
    uses = CredentialUses(pending_max=2)
    for number in range(4):
        uses.note("live", ID, number.to_bytes(4), NOW_US)
    uses.note("live", ID, (0).to_bytes(4), NOW_US + 9)
    assert (len(uses), uses.dropped_count) == (2, 2)


def test_credential_uses__wait_on_when_the_registry_fails(harness: RegistryHarness) -> None:
    """A flush that fails loses nothing that there is room for, and never replaces a newer use."""
    harness.apply(set_up())
    uses = CredentialUses(pending_max=3)
    for number in range(3):
        uses.note("live", ID, number.to_bytes(4), NOW_US)
    registry = harness.registry
    harness.run(registry.aclose())
    with pytest.raises(RegistryError):
        harness.run(uses.flush(registry))
    assert len(uses) == 3
    uses.note("live", ID, (0).to_bytes(4), NOW_US + 9)
    harness.registry = harness.run(harness.backend.open())
    assert harness.run(uses.flush(harness.registry)) == 3
    assert harness.run(harness.registry.last_uses(ID))["live"].at_us == NOW_US + 9


def refuse(harness: RegistryHarness, *callers: RefusedCaller) -> None:
    """Note refused callers."""
    harness.run(harness.registry.record_refusals(callers))


def test_refused_callers__the_latest_first(harness: RegistryHarness) -> None:
    """Each address with each credential occurs once, by its latest time; a late report changes nothing."""
    harness.apply(set_up())
    here = RefusedCaller(ID, "live", HERE, NOW_US + 2)
    unknown = RefusedCaller(ID, "live", b"", NOW_US + 1)
    refuse(harness, here, unknown, here._replace(at_us=NOW_US), here._replace(integration_id="nosuch"))
    assert harness.run(harness.registry.refused_callers(ID)) == (here, unknown)
    refuse(harness, unknown._replace(at_us=NOW_US + 3))
    assert harness.run(harness.registry.refused_callers(ID)) == (unknown._replace(at_us=NOW_US + 3), here)
    assert harness.run(harness.registry.refused_callers("nosuch")) == ()


def test_refused_callers__are_bounded_and_forgotten(harness: RegistryHarness) -> None:
    """A flood keeps the latest; after thirty days nobody is shown."""
    harness.apply(set_up())
    callers = [RefusedCaller(ID, "live", n.to_bytes(4), NOW_US + n) for n in range(3 * REFUSED_MAX)]
    refuse(harness, *callers)
    refuse(harness, callers[0])
    assert harness.run(harness.registry.refused_callers(ID)) == tuple(reversed(callers[-REFUSED_MAX:]))
    harness.clock.advance(us=REFUSED_WINDOW_US + 3 * REFUSED_MAX)
    assert harness.run(harness.registry.refused_callers(ID)) == ()


def test_refused_callers__of_one_call_are_bounded(harness: RegistryHarness) -> None:
    """More than one call takes are refused."""
    with pytest.raises(RefusedError) as caught:
        refuse(harness, *[RefusedCaller(ID, "live", HERE, NOW_US)] * (USES_MAX + 1))
    assert caught.value.code is Code.TOO_MANY


def test_token_uses__the_latest_counts(harness: RegistryHarness) -> None:
    """A later use replaces an earlier one; ids that no token ever had are not kept."""
    first = TokenUse("tokenann", NOW_US + 2, "192.0.2.1")
    uses = (first, first._replace(at_us=NOW_US + 1, source="local"), TokenUse("nosuch", NOW_US, "local"))
    harness.run(harness.registry.record_token_uses(uses))
    assert harness.run(harness.registry.token_uses()) == {"tokenann": first}
    pending = TokenUses()
    pending.note("tokenbob", "local", NOW_US)
    pending.note("tokenann", "2001:db8::1", NOW_US + 3)
    later = {
        "tokenann": TokenUse("tokenann", NOW_US + 3, "2001:db8::1"),
        "tokenbob": TokenUse("tokenbob", NOW_US, "local"),
    }
    assert pending.merged_with(harness.run(harness.registry.token_uses())) == later
    harness.run(pending.flush(harness.registry))
    assert len(pending) == 0
    assert harness.run(harness.registry.token_uses()) == later


def test_token_uses__are_bounded(harness: RegistryHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest are kept."""
    for store in ("sqlite.writes", "sqlite.reads", "redis.presence"):
        monkeypatch.setattr(f"sidecar.stores.registry.{store}.TOKEN_USES_MAX", 2, raising=False)
    for number, name in enumerate(("tokenann", "tokenbob", "tokencat")):
        harness.run(harness.registry.record_token_uses([TokenUse(name, NOW_US + number, "local")]))
    assert set(harness.run(harness.registry.token_uses())) == {"tokenbob", "tokencat"}

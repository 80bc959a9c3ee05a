"""Scopes, rate limits, temporary raises, and what of a record is in force at a moment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.domain.bucket import Quota
from sidecar.domain.effective import in_force, next_change_at_us, raise_in_force
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.limits import RAISE_MAX_US, SCOPES_MAX
from sidecar.domain.refusals import Code, RefusedError
from sidecar.domain.scopes import Scope
from tests.administration import (
    ANN,
    HOUR_US,
    ID,
    MINUTE_US,
    NOW_US,
    active,
    apply,
    create,
    reissued,
    suspended,
)


def refused(record: Integration | None, command: c.Command, now_us: int = NOW_US) -> RefusedError:
    """The refusal of *command*."""
    with pytest.raises(RefusedError) as caught:
        apply(record, command, ANN, now_us)
    return caught.value


def raised(rate_limit_rpm: int = 600, burst: int | None = None) -> Integration:
    """A record with a limit of 60 that is raised for an hour."""
    command = c.RaiseLimit(
        integration_id=ID, rate_limit_rpm=rate_limit_rpm, burst=burst, until_us=NOW_US + HOUR_US
    )
    return apply(active(), command).record


def test_scopes__add_and_remove() -> None:
    """Scopes come and go one by one; adding one that is there is no change."""
    add = c.AddScopes(integration_id=ID, scopes=("orders:read", "inventory:read"))
    record = apply(active(), add).record
    assert Scope("orders", "read") in record.scopes
    assert not apply(record, add).is_change
    removed = apply(record, c.RemoveScopes(integration_id=ID, scopes=("orders:read",))).record
    assert removed.scopes == active().scopes
    assert not apply(removed, c.RemoveScopes(integration_id=ID, scopes=("orders:read",))).is_change


@pytest.mark.parametrize("text", ["taxonomies:write", "nosuch:read", "orders", "orders:delete", ""])
@pytest.mark.parametrize("kind", [c.AddScopes, c.RemoveScopes])
def test_scopes__wrong_ones_are_named_by_place(kind: type[c.AddScopes], text: str) -> None:
    """Write on a read-only category, an unknown category and a typo are refused, each with its index."""
    error = refused(active(), kind(integration_id=ID, scopes=("orders:read", text)))
    assert error.code is Code.UNKNOWN_SCOPE
    if kind is c.AddScopes:
        assert error.field == "scopes[1]"


def test_scopes__of_a_category_that_is_gone_can_be_removed() -> None:
    """A configuration may drop a category; its scopes can still be taken away."""
    record = replace(active(), scopes=frozenset({Scope("bygone", "read")}))
    assert (
        apply(record, c.RemoveScopes(integration_id=ID, scopes=("bygone:read",))).record.scopes == frozenset()
    )


def test_scopes__of_one_command_are_bounded() -> None:
    """A huge list is refused before it is looked at."""
    many = ("orders:read",) * (SCOPES_MAX + 1)
    assert refused(active(), c.AddScopes(integration_id=ID, scopes=many)).code is Code.TOO_MANY


@pytest.mark.parametrize(
    ("rate_limit_rpm", "burst", "field"),
    [
        (0, None, "rate_limit_rpm"),
        (10_001, None, "rate_limit_rpm"),
        (60, 0, "burst"),
        (60, 1_000_001, "burst"),
    ],
)
def test_limit__out_of_range_names_the_field(rate_limit_rpm: int, burst: int | None, field: str) -> None:
    """Limits are 1 ... 10,000 and bursts 1 ... 1,000,000, at creation, in place and raised."""
    given = {"rate_limit_rpm": rate_limit_rpm, "burst": burst}
    assert refused(None, create(**given)).field == field
    assert refused(active(), c.SetRateLimit(integration_id=ID, **given)).field == field  # type: ignore[arg-type]
    raising = c.RaiseLimit(integration_id=ID, until_us=NOW_US + 1, **given)  # type: ignore[arg-type]
    assert refused(active(), raising).field == field


def test_limit__change_in_place() -> None:
    """A new limit is in force at once, with its burst."""
    record = apply(active(), c.SetRateLimit(integration_id=ID, rate_limit_rpm=120, burst=5)).record
    assert in_force(record, NOW_US).quota == Quota.per_minute(120, 5)


def test_raise__reverts_by_itself() -> None:
    """The raise counts until its end and not at it, without anyone doing anything."""
    record = raised(600)
    assert in_force(record, NOW_US + HOUR_US - 1).quota == Quota.per_minute(600)
    assert in_force(record, NOW_US + HOUR_US).quota == Quota.per_minute(60)
    assert next_change_at_us(record, NOW_US) == NOW_US + HOUR_US
    assert next_change_at_us(record, NOW_US + HOUR_US) is None
    assert raise_in_force(record, NOW_US + HOUR_US) is None


def test_raise__record_in_force_shows_the_raised_limit() -> None:
    """A snapshot compiled from the record in force has the raised quota and shows the raised limit."""
    record = raised(600, burst=900)
    before, after = in_force(record, NOW_US), in_force(record, NOW_US + HOUR_US)
    assert (before.rate_limit_rpm, before.quota) == (600, Quota.per_minute(600, 900))
    assert after is record


def test_raise__must_be_higher_and_must_end() -> None:
    """Lower, equal, past, and later than ninety days are refused; setting a limit is the way for those."""
    for rate_limit_rpm in (59, 60):
        lower = c.RaiseLimit(integration_id=ID, rate_limit_rpm=rate_limit_rpm, until_us=NOW_US + 1)
        assert refused(active(), lower).field == "rate_limit_rpm"
    smaller = c.RaiseLimit(integration_id=ID, rate_limit_rpm=70, burst=10, until_us=NOW_US + 1)
    assert refused(active(), smaller).field == "rate_limit_rpm"
    for until_us in (NOW_US, NOW_US - 1, NOW_US + RAISE_MAX_US + 1):
        never = c.RaiseLimit(integration_id=ID, rate_limit_rpm=70, until_us=until_us)
        assert refused(active(), never).field == "until_us"


def test_raise__ends_early_on_request_and_with_a_new_limit() -> None:
    """A raise can be ended; and anyone who sets a limit means that limit, so it ends a raise and says so."""
    end = c.EndLimitRaise(integration_id=ID)
    assert apply(raised(), end).record.limit_raise is None
    assert refused(active(), end).code is Code.RAISE_UNKNOWN
    assert refused(raised(), end, NOW_US + HOUR_US).code is Code.RAISE_UNKNOWN
    outcome = apply(raised(), c.SetRateLimit(integration_id=ID, rate_limit_rpm=10))
    assert in_force(outcome.record, NOW_US).quota == Quota.per_minute(10)
    assert [notice.code for notice in outcome.notices] == ["raise_ended"]


def test_raise__is_replaced_by_the_next() -> None:
    """A second raise replaces the first."""
    again = c.RaiseLimit(integration_id=ID, rate_limit_rpm=90, until_us=NOW_US + MINUTE_US)
    record = apply(raised(600), again).record
    assert in_force(record, NOW_US).quota == Quota.per_minute(90)


@pytest.mark.parametrize("policy", [None, *FailPolicy])
def test_on_store_error__is_set_and_unset(policy: FailPolicy | None) -> None:
    """An integration has its own policy, from its creation on or later; the same again is no change."""
    named = policy.value if policy is not None else None
    command = c.SetOnStoreError(integration_id=ID, on_store_error=named)
    other = active(on_store_error="deny" if policy is not FailPolicy.DENY else "local")
    outcome = apply(other, command)
    assert outcome.record.on_store_error is policy
    assert outcome.after == {"on_store_error": named}
    assert not apply(outcome.record, command).is_change
    assert active(on_store_error=named).on_store_error is policy


@pytest.mark.parametrize("text", ["", "open", "ALLOW", "x" * 1_000, "a\nb"])
def test_on_store_error__names_a_policy(text: str) -> None:
    """What is no policy is refused, at creation too, without repeating much of it."""
    command = c.SetOnStoreError(integration_id=ID, on_store_error=text)
    for error in (refused(active(), command), refused(None, create(on_store_error=text))):
        assert (error.code, error.field) == (Code.INVALID_VALUE, "on_store_error")
        assert len(str(error)) < 400


def test_in_force__disabled_allowlist_and_old_credentials() -> None:
    """Decisions see no entry of a disabled allowlist, and no invalidated credential of an active record."""
    off = apply(active(), c.DisableAllowlist(integration_id=ID)).record
    assert in_force(off, NOW_US).ip_allowlist == ()
    assert off.ip_allowlist != ()
    assert in_force(active(), NOW_US) == active()
    assert in_force(suspended(), NOW_US).credentials == suspended().credentials
    # No change gets here; if a store were written to by other means, decisions would still be safe.
    forged = replace(reissued(), status=active().status)
    assert [credential.id for credential in in_force(forged, NOW_US).credentials] == ["new1"]

"""The registry's contract: the audit log is whole, in order, filtered, and verifies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.domain.accounts import token_id_of
from sidecar.domain.administrators import (
    Bootstrap,
    CreateAdministrator,
    IssueToken,
    NewToken,
    Recover,
    RemoveAdministrator,
    RevokeToken,
    SetRole,
)
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.audit import AuditEntry, FindingKind, StoredEntry, parse_anchor, parse_entry
from sidecar.domain.integrations import Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import Code, RefusedError
from sidecar.domain.roles import Actor, Role, machine_actor
from sidecar.stores.registry.merged_log import merged_page
from sidecar.stores.registry.protocol import PAGE_MAX, AuditQuery
from sidecar.stores.registry.verification import verify_registry
from tests.administration import ANN, BOB, CAT, DAY_US, ID, NOW_US, OLLI, create, credential, digest, set_up
from tests.conformance.registry.registry_harness import RegistryHarness, new_token

FOUNDING = ["admin.bootstrap"] + ["admin.create"] * 4


def entries(world: RegistryHarness, **query: object) -> list[AuditEntry]:
    """The audit entries that *query* finds, page by page, of every chain."""
    found: list[AuditEntry] = []
    for chain in world.run(world.registry.chains()):
        after = ""
        while True:
            asked = AuditQuery(**{"chain": chain, "after": after, **query})  # type: ignore[arg-type]
            page = world.run(world.registry.audit(asked))
            found += [parse_entry(stored.body) for stored in page.entries]
            after = page.next_after
            if not after:
                break
    return found


def actions(world: RegistryHarness, **query: object) -> list[str]:
    """What was done, by the audit log."""
    return [entry.action for entry in entries(world, **query)]


def test_audit__every_change_with_who_when_whence_and_why(world: RegistryHarness) -> None:
    """An entry answers the questions of an incident review."""
    world.apply(set_up(), ANN)
    world.clock.advance(DAY_US)
    suspend = c.Suspend(integration_id=ID, reason="key on a public site")
    world.apply(suspend, OLLI, request_id="req-9", source="198.51.100.7")
    entry = entries(world, subject=f"integration:{ID}")[-1]
    assert (entry.actor, entry.role, entry.token_id) == ("olli", "operator", "tokenolli")
    assert (entry.at_us, entry.source, entry.request_id) == (NOW_US + DAY_US, "198.51.100.7", "req-9")
    assert (entry.action, entry.reason, entry.generation) == (
        "integration.suspend",
        "key on a public site",
        2,
    )
    assert entry.before["status"] == "active"
    assert entry.after["status"] == "suspended"


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_audit__pages_in_both_directions(world: RegistryHarness, limit: int) -> None:
    """Every page size gives every entry once, oldest or newest first."""
    world.apply(create())
    wanted = [*FOUNDING, "integration.create"]
    assert actions(world, limit=limit) == wanted
    forward, backward = entries(world, limit=limit), entries(world, limit=limit, newest_first=True)
    assert len(backward) == len(wanted)
    for chain in world.run(world.registry.chains()):
        of_chain = [entry for entry in forward if entry.chain == chain]
        assert [entry for entry in backward if entry.chain == chain] == of_chain[::-1]


def test_audit__filters(world: RegistryHarness) -> None:
    """By subject, actor, action and time, and by several at once."""
    world.apply(create("a"), ANN)
    world.clock.advance(DAY_US)
    world.apply(create("b"), BOB)
    world.apply(c.SetRateLimit(integration_id="a", rate_limit_rpm=7), BOB)
    assert actions(world, subject="integration:a") == ["integration.create", "limit.set"]
    assert sorted(actions(world, actor="bob")) == ["integration.create", "limit.set"]
    assert actions(world, action="limit.set") == ["limit.set"]
    assert actions(world, actor="bob", subject="integration:b", limit=1) == ["integration.create"]
    assert len(actions(world, since_us=NOW_US + DAY_US)) == 2
    assert len(actions(world, until_us=NOW_US + DAY_US)) == 6
    assert actions(world, subject="integration:nosuch") == []
    (chain,) = world.run(world.registry.chains("integration:a"))
    assert chain in world.run(world.registry.chains())


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (AuditQuery(limit=0), "limit"),
        (AuditQuery(limit=PAGE_MAX + 1), "limit"),
        (AuditQuery(after="x"), "after"),
        (AuditQuery(after="-1"), "after"),
        (AuditQuery(after="9" * 30), "after"),
    ],
)
def test_audit__limits_and_cursors_are_checked(world: RegistryHarness, query: AuditQuery, field: str) -> None:
    """A page is bounded, and a cursor that is none is refused."""
    with pytest.raises(RefusedError) as caught:
        world.run(world.registry.audit(query))
    assert (caught.value.code, caught.value.field) == (Code.INVALID_VALUE, field)


def test_verify__an_intact_registry_and_its_anchors(world: RegistryHarness) -> None:
    """A verification passes, and its one anchor holds after further changes, whatever the chains."""
    world.apply(create())
    first = world.run(verify_registry(world.registry))
    assert first.is_intact
    assert first.log.entries_count == 6
    assert first.records_count == 6
    anchors = [parse_anchor(first.log.anchor)]
    world.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=7))
    assert world.run(verify_registry(world.registry, anchors)).is_intact
    for wrong, kind in (
        (anchors[0]._replace(digest="a" * 64), FindingKind.ALTERED),
        (anchors[0]._replace(sequences=dict.fromkeys(anchors[0].sequences, 1_000)), FindingKind.MISSING),
        (anchors[0]._replace(sequences={**anchors[0].sequences, 999: 1}), FindingKind.MISSING),
    ):
        report = world.run(verify_registry(world.registry, [wrong]))
        assert {finding.kind for finding in report.findings} == {kind}


@pytest.mark.parametrize("newest_first", [False, True], ids=["oldest", "newest"])
@pytest.mark.parametrize("limit", [1, 3, 500])
def test_merged__pages_have_every_entry_once_in_the_order_of_times(
    world: RegistryHarness, newest_first: bool, limit: int
) -> None:
    """Whichever chain an entry is in, also of changes at one time; filters and bounds of time hold, too."""
    for number in range(6):
        world.clock.now_us += number % 2 * 1_000_000
        world.apply(create(f"int-{number}"))
    chains = world.run(world.registry.chains())

    def read(**query: Any) -> list[StoredEntry]:
        asked = AuditQuery(newest_first=newest_first, limit=limit, **query)
        entries: list[StoredEntry] = []
        while True:
            page = world.run(merged_page(world.registry, chains, asked))
            assert len(page.entries) <= limit
            entries += page.entries
            if not page.next_after:
                return entries
            asked = replace(asked, after=page.next_after)

    entries = read()
    places = [(parse_entry(one.body).at_us, one.chain, one.sequence) for one in entries]
    assert places == sorted(set(places), reverse=newest_first)
    assert len(places) == 5 + 6
    assert {parse_entry(one.body).subject for one in read(action="integration.create")} == {
        f"integration:int-{number}" for number in range(6)
    }
    since, until = min(places)[0] + 1, max(places)[0]
    assert read(since_us=since, until_us=until) == [
        one for one, place in zip(entries, places, strict=True) if since <= place[0] < until
    ]


@pytest.mark.parametrize("cursor", ["x", "1", "1:2", "1:2:3:4", "-1:0:1", "1:2:" + "9" * 17, "1:1000:1"])
def test_merged__cursors_and_limits_are_checked(world: RegistryHarness, cursor: str) -> None:
    """What no page gave is refused."""
    for query, field in ((AuditQuery(after=cursor), "after"), (AuditQuery(limit=0), "limit")):
        with pytest.raises(RefusedError) as caught:
            world.run(merged_page(world.registry, (0, 1), query))
        assert (caught.value.code, caught.value.field) == (Code.INVALID_VALUE, field)


def test_verify__holds_after_every_kind_of_ending(world: RegistryHarness) -> None:
    """Deleted integrations and removed administrators are still proven by their trail."""
    world.apply(create())
    world.apply(c.DeleteIntegration(integration_id=ID))
    world.administer(RemoveAdministrator(administrator_id="cat"))
    assert world.run(verify_registry(world.registry)).is_intact


def test_administrators__each_change_is_on_record(world: RegistryHarness) -> None:
    """Accounts, roles and tokens leave a trail with no digest in it."""
    dan = NewToken("tokendan", digest("tokendan"), NOW_US + DAY_US)
    world.administer(
        CreateAdministrator(administrator_id="dan", name="Dan", role=Role.AUDITOR, token=dan), BOB
    )
    world.administer(SetRole(administrator_id="dan", role=Role.ADMIN, reason="promoted"), BOB)
    world.administer(IssueToken(administrator_id="dan", token=new_token("dan2", world.clock)), BOB)
    world.administer(RevokeToken(administrator_id="dan", token_id="tokendan"), BOB)
    world.administer(RemoveAdministrator(administrator_id="dan"), BOB)
    trail = entries(world, subject="administrator:dan")
    assert [entry.action for entry in trail] == [
        "admin.create",
        "admin.set_role",
        "admin.issue_token",
        "admin.revoke_token",
        "admin.remove",
    ]
    assert [entry.generation for entry in trail] == [1, 2, 3, 4, 5]
    assert trail[1].reason == "promoted"
    bodies = "".join(entry.to_stored().body for entry in trail)
    assert digest("tokendan").removeprefix("sha256:") not in bodies


def test_administrators__bootstrap_only_once(world: RegistryHarness) -> None:
    """A registry that has or had administrators is not bootstrapped again."""
    again = Bootstrap(administrator_id="eve", name="Eve", token=new_token("tokeneve", world.clock))
    with pytest.raises(RefusedError) as caught:
        world.administer(again, None)
    assert caught.value.code is Code.NOT_EMPTY
    assert [one.id for one in world.run(world.registry.administrators())] == [
        "ann",
        "audrey",
        "bob",
        "cat",
        "olli",
    ]


def test_administrators__token_finds_its_holder(world: RegistryHarness) -> None:
    """A token's id leads to the account, also after it was revoked; a strange one leads nowhere."""
    key = generate_api_key("sca")
    fresh = NewToken(key.credential_id, key.digest, NOW_US + DAY_US)
    world.administer(IssueToken(administrator_id="bob", token=fresh))
    holder = world.run(world.registry.token_holder(token_id_of(key.api_key)))
    assert holder is not None
    assert (holder.id, len(holder.tokens)) == ("bob", 2)
    world.administer(RevokeToken(administrator_id="bob", token_id=key.credential_id))
    holder = world.run(world.registry.token_holder(key.credential_id))
    assert holder is not None
    assert len(holder.tokens) == 1
    assert world.run(world.registry.token_holder("nosuch")) is None


def test_administrators__token_ids_are_used_once(world: RegistryHarness) -> None:
    """A token that was revoked cannot be put back, whoever asks."""
    world.administer(RevokeToken(administrator_id="bob", token_id="tokenbob"))
    again = IssueToken(administrator_id="cat", token=new_token("tokenbob", world.clock))
    with pytest.raises(RefusedError) as caught:
        world.administer(again)
    assert caught.value.code is Code.CREDENTIAL_ID_USED


def test_administrators__who_ended_changes_nothing_more(world: RegistryHarness) -> None:
    """An actor who was authenticated before its end is refused at the commit."""
    world.administer(RevokeToken(administrator_id="bob", token_id="tokenbob"))
    assert world.refused(create(), BOB).code is Code.ACTOR_ENDED
    world.administer(SetRole(administrator_id="cat", role=Role.AUDITOR))
    assert world.refused(create(), CAT).code is Code.ROLE_FORBIDS


def test_administrators__an_account_made_by_the_suspender_does_not_reactivate(world: RegistryHarness) -> None:
    """The suspender cannot make a second self, nor borrow a colleague by giving it a token of her own."""
    world.apply(set_up())
    world.apply(c.Suspend(integration_id=ID, reason="leak"), ANN)
    world.apply(c.IssueCredential(integration_id=ID, credential=credential("new")), ANN)
    eve = CreateAdministrator(
        administrator_id="eve", name="Eve", role=Role.ADMIN, token=new_token("tokeneve", world.clock)
    )
    world.administer(eve, ANN)
    world.administer(IssueToken(administrator_id="bob", token=new_token("gift", world.clock)), ANN)
    reactivate = c.Reactivate(integration_id=ID, reason="fine again")
    for puppet in (Actor("eve", Role.ADMIN, "tokeneve"), Actor("bob", Role.ADMIN, "gift")):
        assert world.refused(reactivate, puppet).code is Code.GRANTED_BY_SUSPENDER
    assert world.apply(reactivate, BOB).entry is not None


def test_administrators__a_recovered_one_reactivates_what_the_only_one_suspended(
    world: RegistryHarness,
) -> None:
    """Whoever owns the store gets back in without an administrator; every store keeps the mark."""
    for name in ("bob", "cat"):
        world.administer(RemoveAdministrator(administrator_id=name))
    world.apply(set_up())
    world.apply(c.Suspend(integration_id=ID, reason="leak"), ANN)
    world.apply(c.IssueCredential(integration_id=ID, credential=credential("new")), ANN)
    recover = Recover(administrator_id="eve", name="Eve", token=new_token("tokeneve", world.clock))
    made = world.administer(recover, machine_actor("root"))
    assert made.entry is not None
    assert (made.entry.actor, made.entry.action) == ("machine:root", "admin.recover")
    reactivated = world.apply(
        c.Reactivate(integration_id=ID, reason="fine"), Actor("eve", Role.ADMIN, "tokeneve")
    )
    assert reactivated.entry is not None
    assert reactivated.entry.after["single_person"] is True
    assert world.get(ID).single_person_at_us == reactivated.entry.at_us
    assert world.run(verify_registry(world.registry)).is_intact


def test_machine__suspends_without_an_account(world: RegistryHarness) -> None:
    """Where no token is left, the owner of the store can still close the door; any administrator opens it."""
    world.apply(set_up())
    suspended = world.apply(c.Suspend(integration_id=ID, reason="leak"), machine_actor("root"))
    assert suspended.record.status is Status.SUSPENDED
    world.apply(c.IssueCredential(integration_id=ID, credential=credential("new")), ANN)
    assert world.apply(c.Reactivate(integration_id=ID, reason="fine"), ANN).record.single_person_at_us
    assert world.refused(create("other"), machine_actor("root")).code is Code.ROLE_FORBIDS
    assert world.run(verify_registry(world.registry)).is_intact


def test_administrators__idempotency(world: RegistryHarness) -> None:
    """A repeated request for a token makes no second one."""
    issue = IssueToken(administrator_id="bob", token=new_token("t1", world.clock))
    first = world.administer(issue, idempotency_key="k", fingerprint="f")
    other = IssueToken(administrator_id="bob", token=new_token("t2", world.clock))
    again = world.administer(other, idempotency_key="k", fingerprint="f")
    assert (again.administrator, again.entry) == (first.administrator, first.entry)
    assert (first.is_replay, again.is_replay) == (False, True)
    assert world.run(world.registry.token_holder("t2")) is None


def test_record_proofs__page_by_page(world: RegistryHarness) -> None:
    """Every record is proven once, in order of the subjects."""
    world.apply(create("a"))
    world.apply(create("b"))
    found: list[str] = []
    for chain in world.run(world.registry.chains()):
        after = ""
        while page := world.run(world.registry.record_proofs(chain, after)):
            found += [proof.subject for proof in page]
            after = page[-1].subject
    people = [f"administrator:{name}" for name in ("ann", "audrey", "bob", "cat", "olli")]
    assert sorted(found) == [*people, "integration:a", "integration:b"]

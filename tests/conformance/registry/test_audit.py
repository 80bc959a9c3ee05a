"""The registry's contract: the audit log is whole, in order, filtered, and verifies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.domain.accounts import token_id_of
from sidecar.domain.administrators import (
    Bootstrap,
    CreateAdministrator,
    EraseDecisions,
    ExportDecisions,
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


def entries(harness: RegistryHarness, **query: object) -> list[AuditEntry]:
    """The audit entries that *query* finds, page by page, of every chain."""
    found: list[AuditEntry] = []
    for chain in harness.run(harness.registry.chains()):
        after = ""
        while True:
            asked = AuditQuery(**{"chain": chain, "after": after, **query})  # type: ignore[arg-type]
            page = harness.run(harness.registry.audit(asked))
            found += [parse_entry(stored.body) for stored in page.entries]
            after = page.next_after
            if not after:
                break
    return found


def actions(harness: RegistryHarness, **query: object) -> list[str]:
    """What was done, by the audit log."""
    return [entry.action for entry in entries(harness, **query)]


def test_audit__access_to_the_decision_log(harness: RegistryHarness) -> None:
    """An export and an erasure are entries of the administrator's account, which stays valid."""
    export = ExportDecisions(administrator_id=OLLI.id, filters={"integration": ID}, rows=7)
    harness.administer(export, OLLI)
    erasure = EraseDecisions(administrator_id=ANN.id, filters={"integration": ID}, rows=7, reason="privacy")
    harness.administer(erasure, ANN)
    found = entries(harness)[-2:]
    assert [(entry.actor, entry.action, entry.subject) for entry in found] == [
        (OLLI.id, "decisions.export", f"administrator:{OLLI.id}"),
        (ANN.id, "decisions.erase", f"administrator:{ANN.id}"),
    ]
    assert found[1].after == {"integration": ID, "rows": 7}
    assert harness.run(verify_registry(harness.registry)).is_intact


def test_audit__every_change_with_who_when_whence_and_why(harness: RegistryHarness) -> None:
    """An entry answers the questions of an incident review."""
    harness.apply(set_up(), ANN)
    harness.clock.advance(us=DAY_US)
    suspend = c.Suspend(integration_id=ID, reason="key on a public site")
    harness.apply(suspend, OLLI, request_id="req-9", source="198.51.100.7")
    entry = entries(harness, subject=f"integration:{ID}")[-1]
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
def test_audit__pages_in_both_directions(harness: RegistryHarness, limit: int) -> None:
    """Every page size gives every entry once, oldest or newest first."""
    harness.apply(create())
    wanted = [*FOUNDING, "integration.create"]
    assert actions(harness, limit=limit) == wanted
    forward, backward = entries(harness, limit=limit), entries(harness, limit=limit, newest_first=True)
    assert len(backward) == len(wanted)
    for chain in harness.run(harness.registry.chains()):
        of_chain = [entry for entry in forward if entry.chain == chain]
        assert [entry for entry in backward if entry.chain == chain] == of_chain[::-1]


def test_audit__filters(harness: RegistryHarness) -> None:
    """By subject, actor, action and time, and by several at once."""
    harness.apply(create("a"), ANN)
    harness.clock.advance(us=DAY_US)
    harness.apply(create("b"), BOB)
    harness.apply(c.SetRateLimit(integration_id="a", rate_limit_rpm=7), BOB)
    assert actions(harness, subject="integration:a") == ["integration.create", "limit.set"]
    assert sorted(actions(harness, actor="bob")) == ["integration.create", "limit.set"]
    assert actions(harness, action="limit.set") == ["limit.set"]
    assert actions(harness, actor="bob", subject="integration:b", limit=1) == ["integration.create"]
    assert len(actions(harness, since_us=NOW_US + DAY_US)) == 2
    assert len(actions(harness, until_us=NOW_US + DAY_US)) == 6
    assert actions(harness, subject="integration:nosuch") == []
    (chain,) = harness.run(harness.registry.chains("integration:a"))
    assert chain in harness.run(harness.registry.chains())


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
def test_audit__limits_and_cursors_are_checked(
    harness: RegistryHarness, query: AuditQuery, field: str
) -> None:
    """A page is bounded, and a cursor that is none is refused."""
    with pytest.raises(RefusedError) as caught:
        harness.run(harness.registry.audit(query))
    assert (caught.value.code, caught.value.field) == (Code.INVALID_VALUE, field)


def test_verify__an_intact_registry_and_its_anchors(harness: RegistryHarness) -> None:
    """A verification passes, and its one anchor holds after further changes, whatever the chains."""
    harness.apply(create())
    first = harness.run(verify_registry(harness.registry))
    assert first.is_intact
    assert first.log.entries_count == 6
    assert first.records_count == 6
    anchors = [parse_anchor(first.log.anchor)]
    harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=7))
    assert harness.run(verify_registry(harness.registry, anchors)).is_intact
    for wrong, kind in (
        (anchors[0]._replace(digest="a" * 64), FindingKind.ALTERED),
        (anchors[0]._replace(sequences=dict.fromkeys(anchors[0].sequences, 1_000)), FindingKind.MISSING),
        (anchors[0]._replace(sequences={**anchors[0].sequences, 999: 1}), FindingKind.MISSING),
    ):
        report = harness.run(verify_registry(harness.registry, [wrong]))
        assert {finding.kind for finding in report.findings} == {kind}


@pytest.mark.parametrize("newest_first", [False, True], ids=["oldest", "newest"])
@pytest.mark.parametrize("limit", [1, 3, 500])
def test_merged__pages_have_every_entry_once_in_the_order_of_times(
    harness: RegistryHarness, newest_first: bool, limit: int
) -> None:
    """Whichever chain an entry is in, also of changes at one time; filters and bounds of time hold, too."""
    for number in range(6):
        harness.clock.now_us += number % 2 * 1_000_000
        harness.apply(create(f"int-{number}"))
    chains = harness.run(harness.registry.chains())

    def read(**query: Any) -> list[StoredEntry]:
        asked = AuditQuery(newest_first=newest_first, limit=limit, **query)
        entries: list[StoredEntry] = []
        while True:
            page = harness.run(merged_page(harness.registry, chains, asked))
            assert len(page.entries) <= limit
            entries += page.entries
            if not page.next_after:
                return entries
            asked = replace(asked, after=page.next_after)

    entries = read()
    places = [(parse_entry(entry.body).at_us, entry.chain, entry.sequence) for entry in entries]
    assert places == sorted(set(places), reverse=newest_first)
    assert len(places) == 5 + 6
    assert {parse_entry(entry.body).subject for entry in read(action="integration.create")} == {
        f"integration:int-{number}" for number in range(6)
    }
    since, until = min(places)[0] + 1, max(places)[0]
    assert read(since_us=since, until_us=until) == [
        entry for entry, place in zip(entries, places, strict=True) if since <= place[0] < until
    ]


@pytest.mark.parametrize("cursor", ["x", "1", "1:2", "1:2:3:4", "-1:0:1", "1:2:" + "9" * 17, "1:1000:1"])
def test_merged__cursors_and_limits_are_checked(harness: RegistryHarness, cursor: str) -> None:
    """What no page gave is refused."""
    for query, field in ((AuditQuery(after=cursor), "after"), (AuditQuery(limit=0), "limit")):
        with pytest.raises(RefusedError) as caught:
            harness.run(merged_page(harness.registry, (0, 1), query))
        assert (caught.value.code, caught.value.field) == (Code.INVALID_VALUE, field)


def test_verify__holds_after_every_kind_of_ending(harness: RegistryHarness) -> None:
    """Deleted integrations and removed administrators are still proven by their trail."""
    harness.apply(create())
    harness.apply(c.DeleteIntegration(integration_id=ID))
    harness.administer(RemoveAdministrator(administrator_id="cat"))
    assert harness.run(verify_registry(harness.registry)).is_intact


def test_administrators__each_change_is_on_record(harness: RegistryHarness) -> None:
    """Accounts, roles and tokens leave a trail with no digest in it."""
    dan = NewToken("tokendan", digest("tokendan"), NOW_US + DAY_US)
    harness.administer(
        CreateAdministrator(administrator_id="dan", name="Dan", role=Role.AUDITOR, token=dan), BOB
    )
    harness.administer(SetRole(administrator_id="dan", role=Role.ADMIN, reason="promoted"), BOB)
    harness.administer(IssueToken(administrator_id="dan", token=new_token("dan2", harness.clock)), BOB)
    harness.administer(RevokeToken(administrator_id="dan", token_id="tokendan"), BOB)
    harness.administer(RemoveAdministrator(administrator_id="dan"), BOB)
    trail = entries(harness, subject="administrator:dan")
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


def test_administrators__bootstrap_only_once(harness: RegistryHarness) -> None:
    """A registry that has or had administrators is not bootstrapped again."""
    again = Bootstrap(administrator_id="eve", name="Eve", token=new_token("tokeneve", harness.clock))
    with pytest.raises(RefusedError) as caught:
        harness.administer(again, None)
    assert caught.value.code is Code.NOT_EMPTY
    assert [account.id for account in harness.run(harness.registry.administrators())] == [
        "ann",
        "audrey",
        "bob",
        "cat",
        "olli",
    ]


def test_administrators__token_finds_its_holder(harness: RegistryHarness) -> None:
    """A token's id leads to the account, also after it was revoked; a strange one leads nowhere."""
    key = generate_api_key("sca")
    fresh = NewToken(key.credential_id, key.digest, NOW_US + DAY_US)
    harness.administer(IssueToken(administrator_id="bob", token=fresh))
    holder = harness.run(harness.registry.token_holder(token_id_of(key.api_key)))
    assert holder is not None
    assert (holder.id, len(holder.tokens)) == ("bob", 2)
    harness.administer(RevokeToken(administrator_id="bob", token_id=key.credential_id))
    holder = harness.run(harness.registry.token_holder(key.credential_id))
    assert holder is not None
    assert len(holder.tokens) == 1
    assert harness.run(harness.registry.token_holder("nosuch")) is None


def test_administrators__token_ids_are_used_once(harness: RegistryHarness) -> None:
    """A token that was revoked cannot be put back, no matter who asks."""
    harness.administer(RevokeToken(administrator_id="bob", token_id="tokenbob"))
    again = IssueToken(administrator_id="cat", token=new_token("tokenbob", harness.clock))
    with pytest.raises(RefusedError) as caught:
        harness.administer(again)
    assert caught.value.code is Code.CREDENTIAL_ID_USED


def test_administrators__who_ended_changes_nothing_more(harness: RegistryHarness) -> None:
    """An actor who was authenticated before its end is refused at the commit."""
    harness.administer(RevokeToken(administrator_id="bob", token_id="tokenbob"))
    assert harness.refused(create(), BOB).code is Code.ACTOR_ENDED
    harness.administer(SetRole(administrator_id="cat", role=Role.AUDITOR))
    assert harness.refused(create(), CAT).code is Code.ROLE_FORBIDS


def test_administrators__an_account_made_by_the_suspender_does_not_reactivate(
    harness: RegistryHarness,
) -> None:
    """The suspender cannot make a second self, nor borrow a colleague by giving it a token of her own."""
    harness.apply(set_up())
    harness.apply(c.Suspend(integration_id=ID, reason="leak"), ANN)
    harness.apply(c.IssueCredential(integration_id=ID, credential=credential("new")), ANN)
    eve = CreateAdministrator(
        administrator_id="eve", name="Eve", role=Role.ADMIN, token=new_token("tokeneve", harness.clock)
    )
    harness.administer(eve, ANN)
    harness.administer(IssueToken(administrator_id="bob", token=new_token("gift", harness.clock)), ANN)
    reactivate = c.Reactivate(integration_id=ID, reason="fine again")
    for puppet in (Actor("eve", Role.ADMIN, "tokeneve"), Actor("bob", Role.ADMIN, "gift")):
        assert harness.refused(reactivate, puppet).code is Code.GRANTED_BY_SUSPENDER
    assert harness.apply(reactivate, BOB).entry is not None


def test_administrators__a_recovered_one_reactivates_what_the_only_one_suspended(
    harness: RegistryHarness,
) -> None:
    """Anyone who owns the store gets back in without an administrator; every store keeps the mark."""
    for name in ("bob", "cat"):
        harness.administer(RemoveAdministrator(administrator_id=name))
    harness.apply(set_up())
    harness.apply(c.Suspend(integration_id=ID, reason="leak"), ANN)
    harness.apply(c.IssueCredential(integration_id=ID, credential=credential("new")), ANN)
    recover = Recover(administrator_id="eve", name="Eve", token=new_token("tokeneve", harness.clock))
    made = harness.administer(recover, machine_actor("root"))
    assert made.entry is not None
    assert (made.entry.actor, made.entry.action) == ("machine:root", "admin.recover")
    reactivated = harness.apply(
        c.Reactivate(integration_id=ID, reason="fine"), Actor("eve", Role.ADMIN, "tokeneve")
    )
    assert reactivated.entry is not None
    assert reactivated.entry.after["single_person"] is True
    assert harness.get(ID).single_person_at_us == reactivated.entry.at_us
    assert harness.run(verify_registry(harness.registry)).is_intact


def test_machine__suspends_without_an_account(harness: RegistryHarness) -> None:
    """Where no token is left, the owner of the store can still close the door; any administrator opens it."""
    harness.apply(set_up())
    suspended = harness.apply(c.Suspend(integration_id=ID, reason="leak"), machine_actor("root"))
    assert suspended.record.status is Status.SUSPENDED
    harness.apply(c.IssueCredential(integration_id=ID, credential=credential("new")), ANN)
    assert harness.apply(c.Reactivate(integration_id=ID, reason="fine"), ANN).record.single_person_at_us
    assert harness.refused(create("other"), machine_actor("root")).code is Code.ROLE_FORBIDS
    assert harness.run(verify_registry(harness.registry)).is_intact


def test_administrators__idempotency(harness: RegistryHarness) -> None:
    """A repeated request for a token makes no second one."""
    issue = IssueToken(administrator_id="bob", token=new_token("t1", harness.clock))
    first = harness.administer(issue, idempotency_key="k", fingerprint="f")
    other = IssueToken(administrator_id="bob", token=new_token("t2", harness.clock))
    again = harness.administer(other, idempotency_key="k", fingerprint="f")
    assert (again.administrator, again.entry) == (first.administrator, first.entry)
    assert (first.is_replay, again.is_replay) == (False, True)
    assert harness.run(harness.registry.token_holder("t2")) is None


def test_record_proofs__page_by_page(harness: RegistryHarness) -> None:
    """Every record is proven once, in order of the subjects."""
    harness.apply(create("a"))
    harness.apply(create("b"))
    found: list[str] = []
    for chain in harness.run(harness.registry.chains()):
        after = ""
        while page := harness.run(harness.registry.record_proofs(chain, after)):
            found += [proof.subject for proof in page]
            after = page[-1].subject
    people = [f"administrator:{name}" for name in ("ann", "audrey", "bob", "cat", "olli")]
    assert sorted(found) == [*people, "integration:a", "integration:b"]

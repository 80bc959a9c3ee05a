"""The registry's contract: changes are whole, durable, in order, and refused without a trace."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.domain.administrators import RemoveAdministrator
from sidecar.domain.audit import parse_entry
from sidecar.domain.changes import Committed
from sidecar.domain.integrations import Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import Code, RefusedError
from sidecar.domain.scopes import Scope
from sidecar.stores.registry.protocol import (
    IDEMPOTENCY_LIFETIME_US,
    REQUESTS_MAX,
    AuditQuery,
    ListQuery,
    RegistryClosedError,
)
from sidecar.stores.registry.verification import verify_registry
from tests.administration import (
    ANN,
    AUDREY,
    BOB,
    CAT,
    HOUR_US,
    ID,
    create,
    credential,
    digest,
    examples,
    preparation,
    request,
    secret,
    set_up,
)
from tests.conformance.registry.registry_harness import RegistryHarness

SUSPEND = c.Suspend(integration_id=ID, reason="key leaked")
REACTIVATE = c.Reactivate(integration_id=ID, reason="keys replaced")


def is_intact(harness: RegistryHarness) -> bool:
    """Whether a verification finds nothing."""
    return harness.run(verify_registry(harness.registry)).is_intact


@pytest.mark.parametrize("kind", c.COMMANDS)
def test_apply__each_command_is_there_afterwards(harness: RegistryHarness, kind: type[c.Command]) -> None:
    """After each kind of change the registry holds the record, the next generation and the audit entry."""
    for actor, command in preparation(kind):
        harness.apply(command, actor)
    before = harness.run(harness.registry.get(ID))
    made = harness.apply(examples()[kind])
    assert made.entry is not None
    assert made.generation == (before.generation if before else 0) + 1 == made.entry.generation
    assert harness.run(harness.registry.get(ID)) == (None if made.is_deleted else made.record)
    (chain,) = harness.run(harness.registry.chains(f"integration:{ID}"))
    page = harness.run(harness.registry.audit(AuditQuery(chain=chain, newest_first=True, limit=1)))
    assert parse_entry(page.entries[0].body) == made.entry
    assert is_intact(harness)


def test_apply__another_process_sees_it_at_once(harness: RegistryHarness) -> None:
    """What was returned is what every other handle reads from then on."""
    made = harness.apply(create())

    async def look() -> None:
        async with harness.another() as other:
            assert await other.get(ID) == made.record

    harness.run(look())


def test_apply__outlives_the_handle(harness: RegistryHarness) -> None:
    """A closed registry that is opened again has everything; the closed handle refuses to go on."""
    made = harness.apply(create())
    harness.run(harness.registry.aclose())
    with pytest.raises(RegistryClosedError):
        harness.get(ID)
    harness.registry = harness.run(harness.backend.open())
    assert harness.get(ID) == made.record


def test_apply__refusal_leaves_no_trace(harness: RegistryHarness) -> None:
    """A refused change leaves record, generation and audit log as they were, whatever refused it."""
    harness.apply(set_up())
    before = harness.run(harness.registry.revision())
    assert harness.refused(create()).code is Code.ID_TAKEN
    assert harness.refused(SUSPEND, AUDREY).code is Code.ROLE_FORBIDS
    assert harness.refused(c.AddScopes(integration_id=ID, scopes=("no",))).code is Code.UNKNOWN_SCOPE
    assert harness.refused(SUSPEND, expected=7).code is Code.GENERATION_CONFLICT
    taken = c.IssueCredential(integration_id=ID, credential=credential("live"))
    assert harness.refused(taken).code is Code.CREDENTIAL_ID_USED
    assert harness.run(harness.registry.revision()) == before
    assert harness.get(ID).generation == 1


def test_apply__no_change_writes_nothing(harness: RegistryHarness) -> None:
    """A change after which all is as before is no entry and no generation."""
    harness.apply(set_up())
    before = harness.run(harness.registry.revision())
    made = harness.apply(c.AddScopes(integration_id=ID, scopes=("inventory:read",)))
    assert (made.entry, made.position, made.generation) == (None, None, 1)
    assert harness.run(harness.registry.revision()) == before


def test_apply__expected_generation(harness: RegistryHarness) -> None:
    """Of two administrators who read the same generation one must read again."""
    harness.apply(create(), expected=0)
    harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=7), ANN, expected=1)
    late = c.SetRateLimit(integration_id=ID, rate_limit_rpm=9)
    assert harness.refused(late, BOB, expected=1).code is Code.GENERATION_CONFLICT
    assert harness.refused(create(), expected=0).code is Code.GENERATION_CONFLICT
    assert harness.get(ID).rate_limit_rpm == 7


def test_apply__concurrent_changes_of_two_processes_lose_nothing(harness: RegistryHarness) -> None:
    """Changes that cross are made one after the other: every one is in the record and in the chain."""
    harness.apply(create())
    scopes = [
        f"{name}:read" for name in ("inventory", "orders", "skus", "tasks", "crm", "finance", "reports")
    ]

    async def cross() -> None:
        async with harness.another() as other:
            changes = [
                registry.apply(request(c.AddScopes(integration_id=ID, scopes=(scope,)), actor))
                for scope, (registry, actor) in zip(
                    scopes, [(harness.registry, ANN), (other, BOB)] * len(scopes), strict=False
                )
            ]
            await asyncio.gather(*changes)

    harness.run(cross())
    record = harness.get(ID)
    assert {str(scope) for scope in record.scopes} == set(scopes)
    assert record.generation == 1 + len(scopes)
    assert is_intact(harness)


def test_apply__concurrent_with_one_expected_generation(harness: RegistryHarness) -> None:
    """Of ten changes that expect the same generation, from two processes, exactly one is made."""
    harness.apply(create())

    async def cross() -> list[Committed | BaseException]:
        async with harness.another() as other:
            changes = [
                registry.apply(request(c.SetRateLimit(integration_id=ID, rate_limit_rpm=100 + n), ANN, 1))
                for n, registry in enumerate([harness.registry, other] * 5)
            ]
            return await asyncio.gather(*changes, return_exceptions=True)

    outcomes = harness.run(cross())
    assert len([outcome for outcome in outcomes if isinstance(outcome, Committed)]) == 1
    refusals = [outcome for outcome in outcomes if isinstance(outcome, RefusedError)]
    assert [refusal.code for refusal in refusals] == [Code.GENERATION_CONFLICT] * 9
    assert harness.get(ID).generation == 2


def test_reactivation__four_eyes(harness: RegistryHarness) -> None:
    """Every suspender is refused; another administrator reactivates with the new credential."""
    harness.apply(set_up())
    harness.apply(SUSPEND, ANN)
    harness.apply(SUSPEND, BOB)
    assert harness.refused(REACTIVATE, CAT).code is Code.NO_NEW_CREDENTIAL
    harness.apply(c.IssueCredential(integration_id=ID, credential=credential("new")))
    for suspender in (ANN, BOB):
        assert harness.refused(REACTIVATE, suspender).code is Code.SAME_ADMINISTRATOR
    record = harness.apply(REACTIVATE, CAT).record
    assert record.status is Status.ACTIVE
    assert [credential.id for credential in record.credentials] == ["new"]
    assert is_intact(harness)


def test_reactivation__not_by_crossing_changes(harness: RegistryHarness) -> None:
    """A reactivation that crosses a further suspension either came before it or is refused."""
    harness.apply(set_up())
    harness.apply(SUSPEND, ANN)
    harness.apply(c.IssueCredential(integration_id=ID, credential=credential("new")))

    async def cross() -> list[Committed | BaseException]:
        async with harness.another() as other:
            return await asyncio.gather(
                harness.registry.apply(request(SUSPEND, ANN)),
                other.apply(request(REACTIVATE, BOB)),
                return_exceptions=True,
            )

    again, reactivated = harness.run(cross())
    assert isinstance(again, Committed)
    if isinstance(reactivated, RefusedError):
        assert reactivated.code is Code.NO_NEW_CREDENTIAL
    record = harness.get(ID)
    assert record.status is Status.SUSPENDED
    assert is_intact(harness)


def test_delete__id_is_never_used_again(harness: RegistryHarness) -> None:
    """A deleted integration is in no list; its audit entries stay, and its id is retired."""
    harness.apply(set_up())
    harness.apply(SUSPEND, ANN)
    harness.apply(c.DeleteIntegration(integration_id=ID), ANN)
    assert harness.run(harness.registry.get(ID)) is None
    assert harness.run(harness.registry.list(ListQuery())).records == ()
    assert harness.run(harness.registry.load_all()).records == ()
    assert harness.refused(create(), BOB).code is Code.ID_RETIRED
    assert harness.refused(SUSPEND, BOB).code is Code.INTEGRATION_DELETED
    (chain,) = harness.run(harness.registry.chains(f"integration:{ID}"))
    trail = harness.run(harness.registry.audit(AuditQuery(chain=chain, subject=f"integration:{ID}")))
    actions = [parse_entry(stored.body).action for stored in trail.entries]
    assert actions == ["integration.create", "integration.suspend", "integration.delete"]


@pytest.mark.parametrize("ended_by", ["revoke", "suspend", "delete", "rotate"])
def test_credential_id__is_used_once_in_the_whole_registry(harness: RegistryHarness, ended_by: str) -> None:
    """A credential that ended can never be put back, not even into another integration."""
    harness.apply(set_up())
    harness.apply(
        {
            "revoke": c.RevokeCredential(integration_id=ID, credential_id="live"),
            "suspend": SUSPEND,
            "delete": c.DeleteIntegration(integration_id=ID),
            "rotate": c.RotateCredential(
                integration_id=ID, credential_id="live", credential=credential("next")
            ),
        }[ended_by]
    )
    elsewhere = create("other", credentials=(credential("live"),))
    assert harness.refused(elsewhere).code is Code.CREDENTIAL_ID_USED
    assert harness.run(harness.registry.get("other")) is None
    with pytest.raises(RefusedError):
        harness.run(harness.registry.preview(request(elsewhere)))


def test_preview__changes_nothing(harness: RegistryHarness) -> None:
    """A preview says what would come of a change, with its notices, and leaves no trace."""
    harness.apply(set_up())
    before = harness.run(harness.registry.revision())
    outcome = harness.run(
        harness.registry.preview(request(c.RevokeCredential(integration_id=ID, credential_id="live")))
    )
    assert [notice.code for notice in outcome.notices] == ["no_live_credential"]
    assert outcome.record.credentials == ()
    assert harness.run(harness.registry.revision()) == before
    assert harness.get(ID).generation == 1


def test_apply_many__each_on_its_own(harness: RegistryHarness) -> None:
    """Refused changes between others, in order, do not stop them."""
    requests = [request(create(f"i{number}")) for number in range(5)]
    requests[2] = request(create("i1"))
    requests.append(request(c.AddScopes(integration_id="i4", scopes=("orders:read",))))
    outcomes = harness.run(harness.registry.apply_many(requests))
    assert [isinstance(outcome, Committed) for outcome in outcomes] == [True, True, False, True, True, True]
    refused = outcomes[2]
    assert isinstance(refused, RefusedError) and refused.code is Code.ID_TAKEN
    assert harness.get("i4").scopes == frozenset({Scope("orders", "read")})
    assert is_intact(harness)


def test_apply_many__is_bounded(harness: RegistryHarness) -> None:
    """More changes than one call takes are refused before any is made."""
    requests = [request(create(f"i{number}")) for number in range(REQUESTS_MAX + 1)]
    with pytest.raises(RefusedError) as caught:
        harness.run(harness.registry.apply_many(requests))
    assert caught.value.code is Code.TOO_MANY
    assert harness.run(harness.registry.list(ListQuery())).records == ()


def test_idempotency__a_repeat_gets_the_first_result(harness: RegistryHarness) -> None:
    """A repeated request changes nothing and gets what the first one got, marked as a replay."""
    key = {"idempotency_key": "k1", "fingerprint": "f1"}
    first = harness.apply(set_up(), **key)
    harness.apply(c.SetRateLimit(integration_id=ID, rate_limit_rpm=7))
    again = harness.apply(create(credentials=(credential("other"),)), **key)
    assert (again.record, again.entry, again.notices) == (first.record, first.entry, first.notices)
    assert (first.is_replay, again.is_replay) == (False, True)
    assert harness.get(ID).generation == 2
    assert digest("other") not in repr(again)


def test_idempotency__another_request_under_the_same_key(harness: RegistryHarness) -> None:
    """A key identifies one request; keys of two administrators are two keys."""
    harness.apply(create("a"), idempotency_key="k1", fingerprint="f1")
    other = harness.refused(create("b"), idempotency_key="k1", fingerprint="f2")
    assert other.code is Code.IDEMPOTENCY_MISMATCH
    assert not harness.apply(create("b"), BOB, idempotency_key="k1", fingerprint="f2").is_replay


def test_idempotency__refusals_are_not_kept(harness: RegistryHarness) -> None:
    """A refused request may be repeated under its key once the cause is removed."""
    key = {"idempotency_key": "k1", "fingerprint": "f1"}
    harness.refused(SUSPEND, **key)
    harness.apply(create())
    assert not harness.apply(SUSPEND, **key).is_replay


def test_idempotency__ends_after_a_day(harness: RegistryHarness) -> None:
    """A key is forgotten when its time is over."""
    key = {"idempotency_key": "k1", "fingerprint": "f1"}
    harness.apply(create("a"), **key)
    harness.clock.advance(us=IDEMPOTENCY_LIFETIME_US)
    assert not harness.apply(create("b"), **key).is_replay


def test_idempotency__of_an_account_that_ended(harness: RegistryHarness) -> None:
    """A repeat by a token that was revoked meanwhile gets nothing."""
    key = {"idempotency_key": "k1", "fingerprint": "f1"}
    harness.apply(create(), BOB, **key)
    harness.administer(RemoveAdministrator(administrator_id="bob"))
    assert harness.refused(create(), BOB, **key).code is Code.ACTOR_ENDED


def test_webhook_secret__is_kept_beside_the_record_and_erased_when_it_ends(harness: RegistryHarness) -> None:
    """Who signs reads the sealed secrets that are live; rotation and deletion erase the others."""
    harness.apply(create())
    harness.apply(c.GenerateWebhookSecret(integration_id=ID, secret=secret("first")))
    assert harness.run(harness.registry.webhook_secrets(ID)) == (secret("first"),)
    harness.apply(c.RotateWebhookSecret(integration_id=ID, secret=secret("second"), overlap_us=HOUR_US))
    assert harness.run(harness.registry.webhook_secrets(ID)) == (secret("first"), secret("second"))
    harness.apply(c.RotateWebhookSecret(integration_id=ID, secret=secret("third")))
    assert harness.run(harness.registry.webhook_secrets(ID)) == (secret("third"),)
    harness.apply(c.DeleteIntegration(integration_id=ID))
    assert harness.run(harness.registry.webhook_secrets(ID)) == ()
    assert harness.run(harness.registry.webhook_secrets("nosuch")) == ()


def test_apply__clock_that_steps_back_never_reorders_the_record(harness: RegistryHarness) -> None:
    """Times on record never go back, so access given after a suspension cannot look older than it."""
    harness.apply(create())
    first = harness.apply(SUSPEND)
    harness.clock.advance(us=-5 * HOUR_US)
    second = harness.apply(c.IssueCredential(integration_id=ID, credential=credential("new")))
    assert first.entry is not None and second.entry is not None
    assert second.entry.at_us > first.entry.at_us

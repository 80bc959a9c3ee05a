"""Declared integrations: which commands a difference becomes, in which order, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sidecar.domain.cidr import parse_cidr
from sidecar.domain.declared import (
    ComparisonContext,
    Declaration,
    Difference,
    DifferenceKind,
    FieldChange,
    compare,
    differ,
)
from sidecar.domain.integrations import Credential, Integration, Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import Code
from sidecar.domain.roles import Actor
from sidecar.domain.scopes import Scope
from tests.administration import (
    ANN,
    AUDREY,
    BOB,
    DAY_US,
    ID,
    LIFECYCLE,
    NOW_US,
    active,
    apply,
    digest,
    history,
    reissued,
    suspended,
)

READ, WRITE = Scope("inventory", "read"), Scope("inventory", "write")


def terms(actor: Actor = ANN, **given: Any) -> ComparisonContext:
    """Usual terms."""
    return ComparisonContext(LIFECYCLE, actor, NOW_US, "declared", **given)


def key(name: str, expires_at_us: int | None = None) -> Credential:
    """A declared credential; equal names, equal digests."""
    return Credential(name, digest(name), expires_at_us)


def declaration(keys: tuple[str, ...] = ("status",), **given: Any) -> Declaration:
    """What a file says that declares `active()`, but for what is *given*."""
    usual: dict[str, Any] = {
        "id": ID,
        "name": "Acme",
        "scopes": frozenset({READ, WRITE}),
        "ip_allowlist": tuple(map(parse_cidr, ("192.0.2.0/25", "192.0.2.128/25"))),
        "credentials": (key("old1"),),
    }
    return Declaration(Integration(**{**usual, **given}), frozenset({"id", "name", *keys}))


def words(difference: Difference) -> list[str]:
    """The commands of a difference, in their order."""
    return [step.command.action_name for step in difference.steps]


def codes(difference: Difference) -> list[Code]:
    """Why something is refused."""
    return [refusal.problem.code for refusal in difference.refusals]


def test_differ__equal_is_no_change() -> None:
    """What a registry holds already needs no command, and nothing is said about it."""
    difference = differ(declaration(), active(), terms())
    assert difference == Difference(ID, "Acme", DifferenceKind.NONE)


def test_differ__order_of_what_is_written_does_not_matter() -> None:
    """Allowlist entries and credentials in another order, or twice, are the same."""
    entries = tuple(map(parse_cidr, ("192.0.2.128/25", "192.0.2.0/25", "192.0.2.0/25")))
    assert differ(declaration(ip_allowlist=entries), active(), terms()).kind is DifferenceKind.NONE


def test_differ__a_new_one_is_made_at_once() -> None:
    """One command with credentials and all, which must find no integration of this id."""
    difference = differ(declaration(credentials=(key("k1", NOW_US + DAY_US),)), None, terms())
    assert (difference.kind, words(difference)) == (DifferenceKind.ADD, ["integration.create"])
    assert difference.steps[0].expected_generation == 0
    assert FieldChange("credentials", None, "k1") in difference.fields
    assert FieldChange("rate_limit_rpm", None, 60) not in difference.fields


def test_differ__a_new_suspended_one_has_credentials_that_never_work() -> None:
    """They are there before the suspension, which invalidates them; a remark says so."""
    difference = differ(declaration(status=Status.SUSPENDED), None, terms())
    assert words(difference) == ["integration.create", "integration.suspend"]
    assert difference.remarks == (
        "the integration is created suspended, so its credentials are permanently invalid",
    )


def test_differ__an_allowlist_that_is_off_keeps_its_entries() -> None:
    """Made with its entries, it is turned off."""
    difference = differ(declaration(is_allowlist_enabled=False), None, terms())
    assert words(difference) == ["integration.create", "allowlist.disable"]
    assert FieldChange("is_allowlist_enabled", None, False) in difference.fields


def test_differ__narrows_before_it_widens() -> None:
    """Revoke, take scopes away, set limits; then issue and permit; each step names its generation."""
    wanted = declaration(
        scopes=frozenset({READ, Scope("orders", "read")}),
        rate_limit_rpm=120,
        credentials=(key("new1"),),
        name="Acme Ltd",
    )
    difference = differ(wanted, active(), terms(has_prune=True))
    assert words(difference) == [
        "credential.revoke", "scopes.remove", "limit.set", "integration.edit", "credential.issue",
        "scopes.add",
    ]  # fmt: skip
    assert [step.expected_generation for step in difference.steps] == [1, 2, 3, 4, 5, 6]
    assert all(step.command.reason == "declared" for step in difference.steps)
    assert set(difference.fields) == {
        FieldChange("name", "Acme", "Acme Ltd"),
        FieldChange("rate_limit_rpm", 60, 120),
        FieldChange("scopes", "inventory:write", None),
        FieldChange("scopes", None, "orders:read"),
        FieldChange("credentials", "old1", None),
        FieldChange("credentials", None, "new1"),
    }


def test_differ__details_that_are_not_written_stay() -> None:
    """A contact is changed where the file writes one, emptied by '', and left alone where it writes none."""
    held = active(contact="ops@acme.example")
    assert differ(declaration(), held, terms()).kind is DifferenceKind.NONE
    emptied = differ(declaration(keys=("contact",)), held, terms())
    assert emptied.fields == (FieldChange("contact", "ops@acme.example", ""),)


def test_differ__a_suspension_stays_where_the_file_does_not_write_a_status() -> None:
    """A file from before an incident does not lift what the incident needed; a remark says so."""
    difference = differ(declaration(keys=()), reissued(), terms(BOB))
    assert (difference.steps, difference.refusals) == ((), ())
    assert difference.remarks == (
        "the integration stays suspended, because the file has no key 'status' for it",
    )


def test_differ__reactivates_where_it_is_written_and_allowed() -> None:
    """Another administrator than the suspender, and a new credential: that is the last step."""
    wanted = declaration(credentials=(key("new1"),), scopes=frozenset({READ}))
    difference = differ(wanted, reissued(by=ANN), terms(BOB))
    assert words(difference) == ["scopes.remove", "integration.reactivate"]


def test_differ__tells_why_a_reactivation_is_refused() -> None:
    """The suspender may not, nobody may without a new credential; the rest is done all the same."""
    wanted = declaration(credentials=(key("new1"),), rate_limit_rpm=120)
    own = differ(wanted, reissued(by=ANN), terms(ANN))
    assert (words(own), codes(own)) == (["limit.set"], [Code.SAME_ADMINISTRATOR])
    bare = differ(declaration(), suspended(by=ANN), terms(BOB))
    assert (words(bare), codes(bare)) == ([], [Code.NO_NEW_CREDENTIAL])


def test_differ__issues_before_it_reactivates() -> None:
    """A file that brings the new credential and the status together needs one run."""
    difference = differ(declaration(credentials=(key("new1"),)), suspended(by=ANN), terms(BOB))
    assert words(difference) == ["credential.issue", "integration.reactivate"]


def test_differ__a_credential_that_a_suspension_ended_is_not_brought_back() -> None:
    """A file that still lists it is refused with the remedy."""
    wanted = declaration(credentials=(key("old1"), key("new1")))
    difference = differ(wanted, reissued(by=ANN), terms(BOB))
    assert words(difference) == ["integration.reactivate"]
    [refusal] = difference.refusals
    assert (refusal.problem.field, refusal.problem.remedy) == (
        "credentials (old1)",
        "remove it from the file",
    )


def test_differ__suspends_first() -> None:
    """Before anything else, and credentials that are declared for the first time outlive it."""
    wanted = declaration(
        status=Status.SUSPENDED, credentials=(key("old1", NOW_US + DAY_US), key("new1")), rate_limit_rpm=30
    )
    assert words(differ(wanted, active(), terms())) == [
        "integration.suspend", "limit.set", "credential.issue",
    ]  # fmt: skip


def test_differ__another_digest_under_the_same_id_cannot_be() -> None:
    """An id is used once, so a new key needs a new id."""
    wanted = declaration(credentials=(Credential("old1", digest("another"), NOW_US + DAY_US),))
    difference = differ(wanted, active(), terms(has_prune=True))
    assert (words(difference), codes(difference)) == ([], [Code.CREDENTIAL_ID_USED])


def test_compare__a_credential_id_of_another_integration_cannot_be() -> None:
    """The refusal names its owner."""
    other = replace(active(), id="other")
    wanted = declaration()
    plan = compare([wanted], [other], terms())
    [difference] = plan.differences
    assert codes(difference) == [Code.CREDENTIAL_ID_USED]
    assert "belongs to 'other'" in difference.refusals[0].problem.message
    assert isinstance(difference.steps[0].command, c.CreateIntegration)
    assert difference.steps[0].command.credentials == ()
    assert plan.refused == 1


def test_differ__a_credential_that_is_declared_as_expired_ends() -> None:
    """One that works in the registry is revoked; one that is not there is not issued, with a remark."""
    past = NOW_US - DAY_US
    assert words(differ(declaration(credentials=(key("old1", past),)), active(), terms())) == [
        "credential.revoke"
    ]
    absent = differ(declaration(credentials=(key("old1"), key("gone", past))), active(), terms())
    assert (absent.steps, absent.remarks) == ((), ("not issued, because expired: gone",))


def test_differ__credentials_that_are_not_named_stay_without_prune() -> None:
    """They are counted as kept, as long as they work."""
    plan = compare([declaration(credentials=())], [active()], terms())
    assert (plan.steps, plan.kept_credentials, plan.unchanged) == (0, ("old1",), 1)
    invalid = compare([declaration(keys=(), credentials=())], [suspended()], terms())
    assert invalid.kept_credentials == ()


def test_differ__a_new_limit_ends_a_raise_and_says_so() -> None:
    """A raise is not declared: it stays until the limit is changed."""
    raised = history(
        (ANN, c.CreateIntegration(integration_id=ID, name="Acme")),
        (ANN, c.RaiseLimit(integration_id=ID, rate_limit_rpm=600, until_us=NOW_US + DAY_US)),
    )
    same: dict[str, Any] = {"scopes": frozenset(), "ip_allowlist": (), "credentials": ()}
    assert differ(declaration(**same), raised, terms()).kind is DifferenceKind.NONE
    changed = differ(declaration(**same, rate_limit_rpm=120), raised, terms())
    assert changed.remarks == ("the change of the limit ends the temporary raise",)


def test_differ__an_allowlist_is_emptied_only_after_it_was_turned_off() -> None:
    """No entries mean that it is off: that is said first, and both are one wish."""
    difference = differ(declaration(ip_allowlist=()), active(), terms())
    assert words(difference) == ["allowlist.disable", "allowlist.set"]
    final = active()
    for step in difference.steps:
        final = apply(final, step.command).record
    assert (final.ip_allowlist, final.is_allowlist_enabled) == ((), False)
    again = differ(declaration(), final, terms())
    assert words(again) == ["allowlist.set", "allowlist.enable"]


def test_compare__without_permission_everything_is_refused() -> None:
    """An auditor sees the difference, and that nothing of it may be done."""
    plan = compare([declaration()], [replace(active(), id="other", credentials=())], terms(AUDREY))
    assert (plan.steps, [codes(difference) for difference in plan.differences]) == (0, [[Code.ROLE_FORBIDS]])
    pruned = compare([], [active()], terms(AUDREY, has_prune=True))
    assert (pruned.steps, pruned.count(DifferenceKind.REMOVE), pruned.refused) == (0, 0, 1)


def test_compare__counts_what_happens() -> None:
    """Additions, changes, removals; what is unchanged is only counted."""
    changed = replace(active(), id="changed", credentials=())
    gone = replace(active(), id="gone", credentials=())
    plan = compare(
        [
            declaration(),
            declaration(id="new", credentials=()),
            declaration(id="changed", credentials=(), rate_limit_rpm=5),
        ],
        [active(), changed, gone],
        terms(has_prune=True),
    )
    counts = {
        kind: plan.count(kind) for kind in (DifferenceKind.ADD, DifferenceKind.CHANGE, DifferenceKind.REMOVE)
    }
    assert counts == {DifferenceKind.ADD: 1, DifferenceKind.CHANGE: 1, DifferenceKind.REMOVE: 1}
    assert (plan.unchanged, plan.steps, plan.refused) == (1, 3, 0)
    assert [difference.integration_id for difference in plan.differences] == ["new", "changed", "gone"]

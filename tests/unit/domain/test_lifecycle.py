"""The lifecycle of an integration: its table of states, and suspension with four eyes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.domain.accounts import Administrator, AdminToken
from sidecar.domain.effective import in_force, is_invalidated
from sidecar.domain.integrations import SUSPENSIONS_MAX, Status, Suspension
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.dual_control import able_to_reactivate
from sidecar.domain.lifecycle.outcome import Facts
from sidecar.domain.lifecycle.states import TRANSITIONS, State, state_of
from sidecar.domain.records import from_stored, to_stored
from sidecar.domain.refusals import Code, RefusalKind, RefusedError
from sidecar.domain.roles import PERMISSIONS, Action, Actor, Grant, Role, machine_actor
from tests.administration import (
    ANN,
    AUDREY,
    BOB,
    CAT,
    DAY_US,
    HOUR_US,
    ID,
    NOW_US,
    OLLI,
    active,
    after,
    apply,
    create,
    credential,
    digest,
    examples,
    in_state,
    preparation,
    reissued,
    suspended,
)

SUSPEND = c.Suspend(integration_id=ID, reason="key leaked")
REACTIVATE = c.Reactivate(integration_id=ID, reason="keys replaced")
NEW2 = credential("new2")


def refused(*arguments: object, **named: object) -> Code:
    """The code with which a command is refused."""
    with pytest.raises(RefusedError) as caught:
        apply(*arguments, **named)  # type: ignore[arg-type]
    assert all(problem.message and problem.remedy for problem in caught.value.problems)
    return caught.value.code


def _fitting(kind: type[c.Command]) -> c.Command:
    """The example of *kind* for records of `in_state`, whose credentials are old1 and new1."""
    given = {
        c.RotateCredential: c.RotateCredential(
            integration_id=ID, credential_id="new1", credential=credential("new2")
        ),
        c.RevokeCredential: c.RevokeCredential(integration_id=ID, credential_id="old1"),
        c.SetCredentialExpiry: c.SetCredentialExpiry(
            integration_id=ID, credential_id="new1", expires_at_us=NOW_US + HOUR_US
        ),
    }
    return given.get(kind, examples()[kind])


_FIRST: dict[type[c.Command], tuple[c.Command, ...]] = {
    kind: tuple(command for _, command in preparation(kind)[1:])
    for kind in (c.EnableAllowlist, c.EndLimitRaise, c.RotateWebhookSecret)
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", c.COMMANDS)
def test_transitions__each_cell_of_the_table(kind: type[c.Command], state: State) -> None:
    """A command is accepted in the states of its row and leads to one named there; else it is refused."""
    record, is_deleted = in_state(state)
    for first in _FIRST.get(kind, ()) if record is not None else ():
        record = apply(record, first, CAT).record
    command = _fitting(kind)
    if state is State.ACTIVE and kind in (c.RotateCredential, c.SetCredentialExpiry):
        command = replace(command, credential_id="old1")  # type: ignore[call-arg]
    facts = Facts(is_deleted=is_deleted)
    if state not in TRANSITIONS[kind]:
        with pytest.raises(RefusedError) as caught:
            apply(record, command, CAT, facts=facts)
        assert caught.value.kind in (RefusalKind.CONFLICT, RefusalKind.NOT_FOUND)
        return
    try:
        outcome = apply(record, command, CAT, facts=facts)
    except RefusedError as error:
        # Accepted in this state, but nothing to work on in this record.
        assert error.code in (
            Code.ALLOWLIST_EMPTY,
            Code.ENTRY_UNKNOWN,
            Code.RAISE_UNKNOWN,
            Code.SECRET_UNKNOWN,
        )
        return
    assert state_of(outcome.record, outcome.is_deleted, NOW_US) in TRANSITIONS[kind][state]


def test_transitions__every_state_that_may_follow_can_follow() -> None:
    """Where two states may follow, both do: revoking the last new credential takes 'reissued' back."""
    two = apply(reissued(), c.IssueCredential(integration_id=ID, credential=credential("new2"))).record
    revoke = c.RevokeCredential(integration_id=ID, credential_id="new1")
    states = {state_of(apply(record, revoke).record, False, NOW_US) for record in (reissued(), two)}
    assert set(TRANSITIONS[c.RevokeCredential][State.REISSUED]) == states


def test_transitions__every_command_has_a_row() -> None:
    """No command was forgotten in the table."""
    assert set(c.COMMANDS) == set(TRANSITIONS)


@pytest.mark.parametrize("kind", c.COMMANDS)
def test_apply__every_change_is_one_generation(kind: type[c.Command]) -> None:
    """Each command that changes something raises the generation by one, says what, and records when."""
    record = after(preparation(kind))
    outcome = apply(record, examples()[kind], ANN)
    assert outcome.is_change
    assert (record.generation if record else 0) + 1 == outcome.record.generation
    assert outcome.before != outcome.after
    assert outcome.summary
    assert outcome.record.changed_at_us == NOW_US


@pytest.mark.parametrize("kind", c.COMMANDS)
@pytest.mark.parametrize("role", Role)
def test_apply__role_decides(kind: type[c.Command], role: Role) -> None:
    """Each command is made by the roles that the matrix permits, and refused to the others."""
    record = after(preparation(kind))
    actor = Actor("zoe", role, "tokenzoe")
    if kind.action in PERMISSIONS[role]:
        assert apply(record, examples()[kind], actor).is_change
    else:
        assert refused(record, examples()[kind], actor) is Code.ROLE_FORBIDS


def test_permissions__auditor_changes_nothing_and_operator_only_suspends() -> None:
    """The matrix says what the roles' names promise."""
    reading = {action for action in Action if action.name.startswith("READ_")}
    assert reading == PERMISSIONS[Role.AUDITOR]
    assert {Action.SUSPEND} == PERMISSIONS[Role.OPERATOR] - reading
    assert set(Action) == PERMISSIONS[Role.ADMIN]


def test_create__least_privilege() -> None:
    """What is not asked for is not given."""
    record = apply(None, create()).record
    assert record.status is Status.ACTIVE
    assert (record.scopes, record.credentials, record.ip_allowlist) == (frozenset(), (), ())
    assert (record.rate_limit_rpm, record.burst, record.is_allowlist_enabled) == (60, None, False)
    assert (record.generation, record.created_at_us) == (1, NOW_US)


def test_create__naming_entries_turns_the_allowlist_on() -> None:
    """Who names an allowlist at creation means it."""
    record = apply(None, create(allowlist=("192.0.2.0/24",))).record
    assert record.is_allowlist_enabled
    assert in_force(record, NOW_US).ip_allowlist == record.ip_allowlist


def test_create__deleted_id_is_never_used_again() -> None:
    """An integration cannot be made again under its old id: that would undo a suspension alone."""
    assert refused(None, create(), BOB, facts=Facts(is_deleted=True)) is Code.ID_RETIRED
    assert refused(active(), create()) is Code.ID_TAKEN


@pytest.mark.parametrize("bad_id", ["", "Acme", "-a", "a" * 65, "a b", "a/b", "ä", "a\n"])
def test_create__id_that_cannot_stand_in_paths(bad_id: str) -> None:
    """Ids are refused with the field named."""
    with pytest.raises(RefusedError) as caught:
        apply(None, create(bad_id))
    assert (caught.value.code, caught.value.field) == (Code.INVALID_VALUE, "integration_id")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("name", "", Code.INVALID_VALUE),
        ("name", "x" * 129, Code.INVALID_VALUE),
        ("contact", "a\nb", Code.INVALID_VALUE),
        ("owner", "x" * 257, Code.INVALID_VALUE),
        ("third_party_manager", "sck_q2R8mW0bTz_" + "a" * 36, Code.HOLDS_SECRET),
        ("contact", "whsec_" + "A" * 32, Code.HOLDS_SECRET),
        ("owner", digest("x"), Code.HOLDS_SECRET),
    ],
)
def test_details__checked_alike_at_creation_and_edit(field: str, value: str, code: Code) -> None:
    """Texts have a length, no control characters, and no secret that someone pasted by mistake."""
    edit = c.EditDetails(integration_id=ID, texts={field: value})
    for record, command in ((None, create(**{field: value})), (active(), edit)):
        with pytest.raises(RefusedError) as caught:
            apply(record, command)
        assert (caught.value.code, caught.value.field) == (code, field)
        assert value not in str(caught.value) or value == ""


def test_edit__only_what_is_given() -> None:
    """A detail that is not named stays; an empty one is emptied; nothing new is no change."""
    record = apply(
        active(owner="ops", contact="a@b"), c.EditDetails(integration_id=ID, texts={"contact": ""})
    ).record
    assert (record.owner, record.contact) == ("ops", "")
    assert not apply(record, c.EditDetails(integration_id=ID, texts={"owner": "ops"})).is_change


def test_suspend__invalidates_every_credential_and_keeps_the_rest() -> None:
    """The suspension ends what existed; scopes, allowlist and limit stay for the reactivation."""
    before = active(scopes=("orders:read",), allowlist=("192.0.2.0/24",), rate_limit_rpm=7)
    outcome = apply(before, SUSPEND, OLLI)
    record = outcome.record
    assert record.status is Status.SUSPENDED
    assert all(is_invalidated(record, credential) for credential in record.credentials)
    assert (record.scopes, record.ip_allowlist, record.rate_limit_rpm) == (
        before.scopes,
        before.ip_allowlist,
        7,
    )
    assert record.suspensions == (Suspension("olli", NOW_US, "key leaked", 2, NOW_US),)
    assert outcome.after["credentials"] == {"old1": {"is_invalidated": True}}


@pytest.mark.parametrize("command", [SUSPEND, REACTIVATE])
@pytest.mark.parametrize("reason", ["", "   "])
def test_suspend__needs_a_reason(command: c.Command, reason: str) -> None:
    """Neither way goes without a reason on record."""
    record = reissued() if command is REACTIVATE else active()
    assert refused(record, replace(command, reason=reason), BOB) is Code.REASON_REQUIRED


def test_reactivate__by_another_with_new_credentials() -> None:
    """Another administrator admits it again, with the new credential alone."""
    record = apply(reissued(by=ANN), REACTIVATE, BOB).record
    assert record.status is Status.ACTIVE
    assert [credential.id for credential in record.credentials] == ["new1"]
    assert record.suspensions == ()


def test_reactivate__never_by_the_suspender() -> None:
    """The suspender is refused, whatever token is used: identity is the administrator."""
    other_token = replace(ANN, token_id="another")
    assert refused(reissued(by=ANN), REACTIVATE, ANN) is Code.SAME_ADMINISTRATOR
    assert refused(reissued(by=ANN), REACTIVATE, other_token) is Code.SAME_ADMINISTRATOR


def test_reactivate__every_suspender_since_the_last_one_is_excluded() -> None:
    """Two suspended it, so neither of them may; a third may, and then the slate is clean."""
    record = apply(suspended(by=ANN), SUSPEND, BOB).record
    record = apply(record, c.IssueCredential(integration_id=ID, credential=credential("new2"))).record
    assert refused(record, REACTIVATE, ANN) is Code.SAME_ADMINISTRATOR
    assert refused(record, REACTIVATE, BOB) is Code.SAME_ADMINISTRATOR
    record = apply(apply(record, REACTIVATE, CAT).record, SUSPEND, CAT).record
    record = apply(record, c.IssueCredential(integration_id=ID, credential=credential("new3"))).record
    assert apply(record, REACTIVATE, ANN).record.status is Status.ACTIVE


def test_reactivate__needs_a_live_credential_issued_since() -> None:
    """None issued, one revoked or one that expired meanwhile: not yet."""
    assert refused(suspended(), REACTIVATE, BOB) is Code.NO_NEW_CREDENTIAL
    revoked = apply(reissued(), c.RevokeCredential(integration_id=ID, credential_id="new1")).record
    assert refused(revoked, REACTIVATE, BOB) is Code.NO_NEW_CREDENTIAL
    short = c.IssueCredential(integration_id=ID, credential=credential("brief", NOW_US + HOUR_US))
    expiring = apply(suspended(), short).record
    assert apply(expiring, REACTIVATE, BOB).is_change
    assert refused(expiring, REACTIVATE, BOB, NOW_US + HOUR_US) is Code.NO_NEW_CREDENTIAL


def test_reactivate__suspending_again_ends_the_new_credentials_too() -> None:
    """Every credential that exists at a suspension is invalidated, also at a second one."""
    record = apply(reissued(by=ANN), SUSPEND, ANN).record
    assert refused(record, REACTIVATE, BOB) is Code.NO_NEW_CREDENTIAL
    assert len(record.suspensions) == 1
    assert record.suspended_generation == record.generation


def test_reactivate__not_by_an_account_that_the_suspender_made_for_it() -> None:
    """Access that a suspender gave since the suspension is its own; what it gave before, is a colleague's."""
    record = reissued(by=ANN)
    puppet = Actor("eve", Role.ADMIN, "t", (Grant("ann", NOW_US),))
    colleague = Actor("eve", Role.ADMIN, "t", (Grant("ann", NOW_US - 1), Grant("bob", NOW_US + DAY_US)))
    assert refused(record, REACTIVATE, puppet) is Code.GRANTED_BY_SUSPENDER
    assert apply(record, REACTIVATE, colleague).is_change


def test_reactivate__suspending_again_does_not_make_earlier_gifts_older() -> None:
    """Who suspends, makes an account and suspends once more gains nothing: the first suspension counts."""
    record = apply(reissued(by=ANN), SUSPEND, ANN, NOW_US + HOUR_US).record
    record = apply(record, c.IssueCredential(integration_id=ID, credential=credential("new2"))).record
    puppet = Actor("eve", Role.ADMIN, "t", (Grant("ann", NOW_US + 1),))
    assert refused(record, REACTIVATE, puppet) is Code.GRANTED_BY_SUSPENDER


MACHINE = machine_actor("root")
RECOVERED = Actor("eve", Role.ADMIN, "t", (Grant("machine:root", NOW_US - DAY_US),), is_recovered=True)


@pytest.mark.parametrize(
    ("actor", "suspender", "is_marked"),
    [
        (BOB, ANN, False),
        (RECOVERED, ANN, True),
        (Actor("fay", Role.ADMIN, "t", (Grant("machine:root", NOW_US), Grant("eve", NOW_US))), ANN, True),
        # Access from before the suspension: nobody knew of it then.
        (Actor("fay", Role.ADMIN, "t", (Grant("machine:root", NOW_US - 1),)), ANN, False),
        # Nothing tells who suspended it: it may be the administrator who reactivates.
        (BOB, MACHINE, True),
    ],
    ids=["two people", "recovered", "given by a recovered one", "given before", "suspended on the machine"],
)
def test_reactivate__a_single_person_is_marked(actor: Actor, suspender: Actor, is_marked: bool) -> None:
    """The mark is on the record, in the audit entry, and in the answer."""
    outcome = apply(reissued(by=suspender), REACTIVATE, actor, NOW_US + HOUR_US)
    assert outcome.record.status is Status.ACTIVE
    assert outcome.record.single_person_at_us == (NOW_US + HOUR_US if is_marked else 0)
    assert outcome.after.get("single_person") is (True if is_marked else None)
    assert outcome.summary.endswith("; single_person") is is_marked
    assert [notice.code for notice in outcome.notices] == (["single_person"] if is_marked else [])
    assert from_stored(to_stored(outcome.record)) == outcome.record


def test_reactivate__two_people_end_the_mark() -> None:
    """The next reactivation by a second administrator takes it off the record; the trail keeps it."""
    record = apply(reissued(by=ANN), REACTIVATE, RECOVERED).record
    assert record.single_person_at_us
    record = apply(
        apply(record, SUSPEND, ANN).record, c.IssueCredential(integration_id=ID, credential=NEW2)
    ).record
    assert record.single_person_at_us
    outcome = apply(record, REACTIVATE, BOB)
    assert outcome.record.single_person_at_us == 0
    assert (outcome.before["single_person"], outcome.after["single_person"]) == (True, False)


def test_reactivate__a_recovered_suspender_is_still_the_suspender() -> None:
    """Recovering an account is no second person for the account itself, nor for whom it gave access."""
    record = reissued(by=RECOVERED)
    assert refused(record, REACTIVATE, RECOVERED) is Code.SAME_ADMINISTRATOR
    puppet = Actor("fay", Role.ADMIN, "t", (Grant("eve", NOW_US + 1), Grant("machine:root", NOW_US - DAY_US)))
    assert refused(record, REACTIVATE, puppet) is Code.GRANTED_BY_SUSPENDER


def test_machine__suspends_and_does_nothing_else() -> None:
    """Who works on the registry itself, without a token, can close a door there and open none."""
    outcome = apply(active(), SUSPEND, MACHINE)
    assert [suspension.by for suspension in outcome.record.suspensions] == ["machine:root"]
    assert [notice.code for notice in outcome.notices] == ["single_person"]
    for kind, command in examples().items():
        if kind is not c.Suspend:
            assert refused(in_state(State.ACTIVE)[0], command, MACHINE) is Code.ROLE_FORBIDS
    # It takes nobody off the list who may not reactivate.
    both = apply(reissued(by=ANN), SUSPEND, MACHINE).record
    both = apply(both, c.IssueCredential(integration_id=ID, credential=NEW2)).record
    assert refused(both, REACTIVATE, ANN) is Code.SAME_ADMINISTRATOR


def account(name: str, role: Role = Role.ADMIN, ends_us: int = NOW_US + DAY_US, *by: str) -> Administrator:
    """An account with one token, and access that *by* gave after the suspension."""
    grants = tuple(Grant(administrator, NOW_US + 1) for administrator in by)
    return Administrator(
        name, name, role, NOW_US - DAY_US, (AdminToken(f"t{name}", digest(name), NOW_US, ends_us),), grants
    )


@pytest.mark.parametrize(
    ("others", "able"),
    [
        ([], ()),
        ([account("bob")], ("bob",)),
        ([account("bob", ends_us=NOW_US)], ()),
        ([account("olli", Role.OPERATOR), account("audrey", Role.AUDITOR)], ()),
        ([account("eve", Role.ADMIN, NOW_US + DAY_US, "ann")], ()),
        ([replace(account("bob"), removed_at_us=NOW_US)], ()),
        ([account("eve", Role.ADMIN, NOW_US + DAY_US, "machine:root")], ("eve",)),
    ],
    ids=["nobody", "another", "expired", "other roles", "given by the suspender", "removed", "recovered"],
)
def test_able_to_reactivate__is_who_could(others: list[Administrator], able: tuple[str, ...]) -> None:
    """The same rule as the reactivation's own, asked of everybody: the suspender never counts."""
    assert able_to_reactivate([account("ann"), *others], suspended(by=ANN).suspensions, NOW_US) == able


def test_reactivate__of_an_active_one_is_a_conflict() -> None:
    """There is nothing to reactivate."""
    assert refused(active(), REACTIVATE, BOB) is Code.NOT_SUSPENDED


def test_suspend__is_never_refused_to_the_first_and_bounded_after() -> None:
    """An active integration can always be suspended; a suspended one keeps a bounded list of suspenders."""
    record = suspended(by=ANN)
    for number in range(SUSPENSIONS_MAX - 1):
        record = apply(record, SUSPEND, Actor(f"admin{number}", Role.ADMIN, "t")).record
    assert refused(record, SUSPEND, BOB) is Code.TOO_MANY
    assert len(apply(record, SUSPEND, ANN).record.suspensions) == SUSPENSIONS_MAX


def test_suspend__what_is_recorded_never_goes_back_in_time() -> None:
    """A clock that stepped back cannot put a suspension before what is on record already."""
    facts = Facts(recorded_at_us=NOW_US + DAY_US)
    record = apply(active(), SUSPEND, ANN, NOW_US, facts).record
    assert record.suspensions[0].at_us == NOW_US + DAY_US + 1


def test_delete__keeps_what_it_was_but_no_credential() -> None:
    """What is kept of a deleted integration cannot admit anyone."""
    outcome = apply(active(), c.DeleteIntegration(integration_id=ID))
    assert outcome.is_deleted
    assert outcome.record.credentials == ()
    assert outcome.before["name"] == "Acme"
    assert outcome.after == {}


def test_refusals__unknown_and_deleted_are_distinguished() -> None:
    """A deleted integration has a trail to read; an unknown one never was."""
    assert refused(None, SUSPEND) is Code.INTEGRATION_UNKNOWN
    assert refused(None, SUSPEND, facts=Facts(is_deleted=True)) is Code.INTEGRATION_DELETED


def test_reason__is_checked_on_every_command() -> None:
    """A reason is recorded forever, so it has a bound and holds no secret."""
    leaky = c.AddScopes(integration_id=ID, scopes=(), reason="was sck_q2R8mW0bTz_" + "a" * 36)
    assert refused(active(), leaky) is Code.HOLDS_SECRET
    assert refused(active(), replace(leaky, reason="x" * 501)) is Code.INVALID_VALUE
    assert refused(active(), SUSPEND, AUDREY) is Code.ROLE_FORBIDS

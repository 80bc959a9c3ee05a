"""Administrators: accounts, roles and tokens, and who is behind a token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from sidecar.domain.accounts import (
    Administrator,
    AdminToken,
    AuthenticationError,
    authenticate,
    confirm,
    describe_administrator,
    parse_administrator,
    stored_administrator,
    token_id_of,
)
from sidecar.domain.administrators import (
    ADMIN_COMMANDS,
    ADMINISTRATORS_MAX,
    RECOVERIES_MAX,
    TOKEN_LIFETIME_MAX_US,
    TOKENS_MAX,
    AdminCommand,
    AdminOutcome,
    Bootstrap,
    CreateAdministrator,
    DecisionLogAccess,
    EraseDecisions,
    ExportDecisions,
    IssueToken,
    NewToken,
    Recover,
    RemoveAdministrator,
    RevokeToken,
    SetRole,
    administer,
)
from sidecar.domain.api_keys import NewApiKey, generate_api_key
from sidecar.domain.refusals import Code, RefusedError
from sidecar.domain.roles import PERMISSIONS, Action, Actor, Grant, Role, machine_actor, merge_grants
from tests.administration import DAY_US, HOUR_US, NOW_US, digest

EXPIRY_US = NOW_US + DAY_US


def token(name: str, expires_at_us: int = EXPIRY_US) -> NewToken:
    """A fresh token; equal names, equal tokens."""
    return NewToken(name, digest(name), expires_at_us)


def actor(administrator: Administrator, token_id: str | None = None) -> Actor:
    """*administrator* by its first token, or by the one named."""
    known = {token.id: token for token in administrator.tokens}
    used = known[token_id] if token_id else administrator.tokens[0]
    return Actor(
        administrator.id, administrator.role, used.id, merge_grants(administrator.grants, used.grants)
    )


def directory(*more: tuple[str, Role]) -> dict[str, Administrator]:
    """ann, who was bootstrapped, and accounts that she made."""
    command = Bootstrap(administrator_id="ann", name="Ann", token=token("tokenann"))
    made = {"ann": administer({}, command, None, NOW_US).administrator}
    for name, role in more:
        create = CreateAdministrator(administrator_id=name, name=name, role=role, token=token(f"token{name}"))
        made[name] = administer(made, create, actor(made["ann"]), NOW_US).administrator
    return made


def act(
    accounts: Mapping[str, Administrator], command: AdminCommand, by: str = "ann", now_us: int = NOW_US
) -> AdminOutcome:
    """What *command* of the account *by* does."""
    return administer(accounts, command, actor(accounts[by]), now_us)


def refused(
    accounts: Mapping[str, Administrator], command: AdminCommand, by: str = "ann", now_us: int = NOW_US
) -> Code:
    """The code with which *command* is refused."""
    with pytest.raises(RefusedError) as caught:
        act(accounts, command, by, now_us)
    assert all(problem.message and problem.remedy for problem in caught.value.problems)
    return caught.value.code


CREATE = CreateAdministrator(administrator_id="new", name="New", role=Role.AUDITOR, token=token("tokennew"))
EXAMPLES: dict[type[AdminCommand], AdminCommand] = {
    CreateAdministrator: CREATE,
    SetRole: SetRole(administrator_id="bob", role=Role.OPERATOR),
    RemoveAdministrator: RemoveAdministrator(administrator_id="bob"),
    IssueToken: IssueToken(administrator_id="bob", token=token("second")),
    RevokeToken: RevokeToken(administrator_id="bob", token_id="tokenbob"),
}


ACCESSES: tuple[DecisionLogAccess, ...] = (
    ExportDecisions(administrator_id="zoe", filters={"integration": "acme"}, rows=7),
    EraseDecisions(administrator_id="zoe", filters={"integration": "acme"}, rows=7, reason="privacy"),
)


def test_examples__cover_every_command() -> None:
    """The tests below leave no command out."""
    accesses = {type(command) for command in ACCESSES}
    assert {Bootstrap, Recover, *EXAMPLES} | accesses == set(ADMIN_COMMANDS)


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("role", Role)
def test_administer__only_admins(kind: type[AdminCommand], role: Role) -> None:
    """Accounts and tokens are made and ended by the role admin alone."""
    accounts = directory(("bob", Role.ADMIN), ("zoe", role))
    if Action.ADMINISTER in PERMISSIONS[role]:
        outcome = act(accounts, EXAMPLES[kind], "zoe")
        assert outcome.is_change
        assert outcome.before != outcome.after
    else:
        assert refused(accounts, EXAMPLES[kind], "zoe") is Code.ROLE_FORBIDS


@pytest.mark.parametrize("command", ACCESSES)
@pytest.mark.parametrize("role", Role)
def test_administer__records_access_to_the_decision_log(command: DecisionLogAccess, role: Role) -> None:
    """The entry says which rows, and the account stays as it is but for its generation."""
    accounts = directory(("zoe", role))
    if command.action not in PERMISSIONS[role]:
        assert refused(accounts, command, "zoe") is Code.ROLE_FORBIDS
        return
    outcome = act(accounts, command, "zoe")
    assert outcome.administrator == replace(accounts["zoe"], generation=accounts["zoe"].generation + 1)
    assert (outcome.before, outcome.after) == ({}, {"rows": 7, "integration": "acme"})
    assert outcome.summary.endswith(" 7 rows of the decision log with integration acme")


def test_erase_decisions__needs_a_reason() -> None:
    """Rows that were erased cannot say why."""
    assert (
        refused(directory(("zoe", Role.ADMIN)), replace(ACCESSES[1], reason=""), "zoe")
        is Code.REASON_REQUIRED
    )


def test_bootstrap__on_an_empty_store_only() -> None:
    """The first administrator is an admin; there is no second first one, even when all are removed."""
    accounts = directory()
    assert accounts["ann"].role is Role.ADMIN
    again = Bootstrap(administrator_id="eve", name="Eve", token=token("tokeneve"))
    for known in (accounts, {"ann": replace(accounts["ann"], removed_at_us=NOW_US, tokens=())}):
        with pytest.raises(RefusedError) as caught:
            administer(known, again, None, NOW_US)
        assert caught.value.code is Code.NOT_EMPTY


MACHINE = machine_actor("root")
RECOVER = Recover(administrator_id="eve", name="Eve", token=token("tokeneve"), reason="all tokens lost")


def test_recover__makes_an_admin_that_no_account_gave() -> None:
    """It is an admin, marked, with the machine alone behind its access; the audit log gets the mark."""
    outcome = administer(directory(), RECOVER, MACHINE, NOW_US)
    made = outcome.administrator
    assert (made.role, made.is_recovered) == (Role.ADMIN, True)
    assert [grant.by for grant in made.grants] == ["machine:root"]
    assert outcome.after["is_recovered"] is True
    assert parse_administrator(json.loads(stored_administrator(made))) == made


def test_recover__when_no_account_is_left_that_could() -> None:
    """Expired tokens, removed accounts and a full directory do not stop it; an empty registry does."""
    accounts = directory()
    gone = {"ann": replace(accounts["ann"], removed_at_us=NOW_US, tokens=())}
    assert administer(gone, RECOVER, MACHINE, NOW_US).is_change
    full = {**accounts, **{f"a{n}": replace(accounts["ann"], id=f"a{n}") for n in range(ADMINISTRATORS_MAX)}}
    assert administer(full, RECOVER, MACHINE, NOW_US).is_change
    over = {**full, **{f"b{n}": replace(accounts["ann"], id=f"b{n}") for n in range(RECOVERIES_MAX)}}
    for known, code in (({}, Code.NEVER_BOOTSTRAPPED), (over, Code.TOO_MANY)):
        with pytest.raises(RefusedError) as caught:
            administer(known, RECOVER, MACHINE, NOW_US)
        assert caught.value.code is code


def test_recover__by_no_administrator() -> None:
    """A token leads nowhere near it: anyone who wires it to one finds out at the first call."""
    accounts = directory()
    for by in (actor(accounts["ann"]), None):
        with pytest.raises(AssertionError):
            administer(accounts, RECOVER, by, NOW_US)


def test_machine__is_no_administrator() -> None:
    """Who works on the registry itself makes, ends and promotes nobody but by a recovery."""
    for command in EXAMPLES.values():
        with pytest.raises(RefusedError) as caught:
            administer(directory(("bob", Role.ADMIN)), command, MACHINE, NOW_US)
        assert caught.value.code is Code.ROLE_FORBIDS


def test_recovered__the_mark_stays_and_is_passed_on() -> None:
    """A change of role keeps it; access that the account gives has the machine behind it."""
    accounts = directory(("bob", Role.ADMIN))
    accounts["eve"] = administer(accounts, RECOVER, MACHINE, NOW_US).administrator
    made = act(accounts, CREATE, "eve").administrator
    given = act(accounts, IssueToken(administrator_id="bob", token=token("gift")), "eve").administrator
    own = act(accounts, IssueToken(administrator_id="eve", token=token("own")), "eve").administrator
    for account, token_id in ((made, "tokennew"), (given, "gift"), (own, "own")):
        assert "machine:root" in {grant.by for grant in actor(account, token_id).grants}
    assert "machine:root" not in {grant.by for grant in actor(given, "tokenbob").grants}
    lowered = act(accounts, SetRole(administrator_id="eve", role=Role.AUDITOR), "bob").administrator
    raised = act({**accounts, "eve": lowered}, SetRole(administrator_id="eve", role=Role.ADMIN), "bob")
    assert raised.administrator.is_recovered


def test_create__ids_are_for_ever() -> None:
    """An id is taken while its account lives and retired when it is removed."""
    accounts = directory(("bob", Role.ADMIN))
    create = CreateAdministrator(administrator_id="bob", name="Bob", role=Role.ADMIN, token=token("t2"))
    assert refused(accounts, create) is Code.ID_TAKEN
    removed = act(accounts, RemoveAdministrator(administrator_id="bob")).administrator
    assert refused({**accounts, "bob": removed}, create) is Code.ID_RETIRED


@pytest.mark.parametrize("bad_id", ["", "Ann", "@a", "a b", "a" * 65])
def test_create__id_and_name_are_checked(bad_id: str) -> None:
    """Ids can be in logs and paths; names are printable."""
    assert refused(directory(), replace(CREATE, administrator_id=bad_id)) is Code.INVALID_VALUE
    assert refused(directory(), replace(CREATE, name="")) is Code.INVALID_VALUE


def test_create__accounts_are_bounded() -> None:
    """Removed accounts count, because they are kept."""
    accounts = directory()
    accounts |= {f"a{n}": replace(accounts["ann"], id=f"a{n}") for n in range(ADMINISTRATORS_MAX - 1)}
    assert refused(accounts, CREATE) is Code.TOO_MANY


@pytest.mark.parametrize("expires_at_us", [NOW_US, NOW_US - 1, NOW_US + TOKEN_LIFETIME_MAX_US + 1])
def test_token__must_expire_within_a_year(expires_at_us: int) -> None:
    """No token lives forever."""
    issue = IssueToken(administrator_id="ann", token=token("t2", expires_at_us))
    assert refused(directory(), issue) is Code.INVALID_VALUE


@pytest.mark.parametrize(
    "bad", [NewToken("a_b", digest("x"), EXPIRY_US), NewToken("x", "sha256:1", EXPIRY_US)]
)
def test_token__shape_is_checked(bad: NewToken) -> None:
    """A token that could never match is refused."""
    assert refused(directory(), IssueToken(administrator_id="ann", token=bad)) is Code.INVALID_VALUE


def test_token__expired_ones_make_room_and_live_ones_do_not() -> None:
    """An account has a bounded number of live tokens."""
    accounts = directory()
    for number in range(TOKENS_MAX - 1):
        issue = IssueToken(administrator_id="ann", token=token(f"t{number}", NOW_US + HOUR_US))
        accounts = {"ann": act(accounts, issue).administrator}
    more = IssueToken(administrator_id="ann", token=token("more"))
    assert refused(accounts, more) is Code.TOO_MANY
    later = act(accounts, more, now_us=NOW_US + HOUR_US).administrator
    assert [token.id for token in later.tokens] == ["tokenann", "more"]


def test_revoke__ends_one_token() -> None:
    """The others work on; an unknown one is answered with the known ones."""
    accounts = directory(("bob", Role.ADMIN))
    assert act(accounts, EXAMPLES[RevokeToken]).administrator.tokens == ()
    assert refused(accounts, RevokeToken(administrator_id="bob", token_id="x")) is Code.TOKEN_UNKNOWN


def test_last_admin__cannot_go() -> None:
    """The last admin with a live token can be neither removed, nor demoted, nor lose that token."""
    accounts = directory(("bob", Role.AUDITOR))
    for command in (
        RemoveAdministrator(administrator_id="ann"),
        SetRole(administrator_id="ann", role=Role.AUDITOR),
        RevokeToken(administrator_id="ann", token_id="tokenann"),
    ):
        assert refused(accounts, command) is Code.LAST_ADMINISTRATOR
    both = directory(("bob", Role.ADMIN))
    assert act(both, RemoveAdministrator(administrator_id="ann"), "bob").is_change


def test_remove__ends_every_token_and_is_distinguished_from_unknown() -> None:
    """A removed account has no tokens, and nothing can be done to it any more."""
    accounts = directory(("bob", Role.ADMIN))
    removed = act(accounts, RemoveAdministrator(administrator_id="bob")).administrator
    assert (removed.tokens, removed.removed_at_us) == ((), NOW_US)
    for known in ({**accounts, "bob": removed}, directory()):
        assert (
            refused(known, SetRole(administrator_id="bob", role=Role.AUDITOR)) is Code.ADMINISTRATOR_UNKNOWN
        )


def test_set_role__same_role_is_no_change() -> None:
    """Nothing is put on record when nothing changes."""
    assert not act(directory(), SetRole(administrator_id="ann", role=Role.ADMIN)).is_change


def test_grants__follow_access_over_every_step() -> None:
    """An account made by an account that ann made has its access from both, each with its time."""
    accounts = directory(("bob", Role.ADMIN))
    create = CreateAdministrator(administrator_id="eve", name="Eve", role=Role.ADMIN, token=token("t3"))
    eve = act(accounts, create, "bob", NOW_US + HOUR_US).administrator
    assert actor(eve).grants == (Grant("ann", NOW_US), Grant("bob", NOW_US + HOUR_US))


def test_grants__of_a_token_of_ones_own_are_those_of_the_token_used() -> None:
    """A token that ann gives bob is hers as well; one that he makes is as much his as the one he used."""
    accounts = directory(("bob", Role.ADMIN))
    issue = IssueToken(administrator_id="bob", token=token("gift"))
    accounts["bob"] = act(accounts, issue, "ann", NOW_US + HOUR_US).administrator
    own = IssueToken(administrator_id="bob", token=token("own"))
    accounts["bob"] = act(accounts, own, "bob", NOW_US + 2 * HOUR_US).administrator
    bob = accounts["bob"]
    assert actor(bob, "own").grants == actor(bob, "tokenbob").grants == (Grant("ann", NOW_US),)
    assert actor(bob, "gift").grants == (Grant("ann", NOW_US + HOUR_US),)
    again = replace(own, token=token("laundered"))
    laundered = administer(accounts, again, actor(bob, "gift"), NOW_US + 3 * HOUR_US).administrator
    assert actor(laundered, "laundered").grants == (Grant("ann", NOW_US + HOUR_US),)


def test_grants__of_a_role_count_too() -> None:
    """An operator whom ann made an admin today has that access from today."""
    accounts = directory(("bob", Role.OPERATOR))
    promoted = act(accounts, SetRole(administrator_id="bob", role=Role.ADMIN), "ann", NOW_US + HOUR_US)
    assert actor(promoted.administrator).grants == (Grant("ann", NOW_US + HOUR_US),)


def test_reason__is_checked() -> None:
    """The reason of a change of an account holds no secret either."""
    leaky = RemoveAdministrator(administrator_id="bob", reason="had sca_q2R8mW0bTz_" + "a" * 36)
    assert refused(directory(("bob", Role.ADMIN)), leaky) is Code.HOLDS_SECRET


def test_stored__round_trip_and_description_without_digests() -> None:
    """An account reads back as the same value; what others see has no digest."""
    accounts = directory(("bob", Role.ADMIN))
    for account in accounts.values():
        assert parse_administrator(json.loads(stored_administrator(account))) == account
        assert "sha256:" not in json.dumps(describe_administrator(account))


# Who is behind a token


@pytest.fixture(scope="module")
def key() -> NewApiKey:
    """A real token."""
    return generate_api_key("sca")


@pytest.fixture
def holder(key: NewApiKey) -> Administrator:
    """Its holder."""
    kept = AdminToken(key.credential_id, key.digest, NOW_US, EXPIRY_US)
    return Administrator("ann", "Ann", Role.OPERATOR, NOW_US, (kept,), (Grant("bob", 7),))


def why(presented: str, holder: Administrator | None, now_us: int = NOW_US) -> str:
    """The word with which a token is refused, after the public text was looked at."""
    with pytest.raises(AuthenticationError) as caught:
        authenticate(presented, holder, now_us)
    assert str(caught.value) == str(AuthenticationError("unknown"))
    return caught.value.reason


def test_authenticate__the_holder(key: NewApiKey, holder: Administrator) -> None:
    """A valid token gives its account, with role and grants."""
    assert authenticate(key.api_key, holder, EXPIRY_US - 1) == Actor(
        "ann", Role.OPERATOR, key.credential_id, (Grant("bob", 7),)
    )


def test_authenticate__every_fault_has_one_public_text(key: NewApiKey, holder: Administrator) -> None:
    """Missing, malformed, unknown, foreign, ended and expired tokens cannot be distinguished from outside."""
    forged = generate_api_key("sca").api_key
    assert why("", holder) == "missing"
    assert why(key.api_key[:-1], holder) == "malformed"
    assert why(generate_api_key("sck").api_key, holder) == "malformed"
    assert why(key.api_key, None) == "unknown"
    assert why(forged, holder) == "unknown"
    assert why(key.api_key, replace(holder, tokens=())) == "unknown"
    assert why(key.api_key, replace(holder, removed_at_us=NOW_US)) == "unknown"
    assert why(key.api_key, holder, EXPIRY_US) == "expired"
    kept = replace(holder.tokens[0], digest=digest("another secret"))
    assert why(key.api_key, replace(holder, tokens=(kept,))) == "unknown"


def test_token_id__needs_no_look_up(key: NewApiKey) -> None:
    """The id is read from the token alone; junk never reaches the store."""
    assert token_id_of(key.api_key) == key.credential_id
    for junk in (None, "", "x", "sca_", "Bearer " + key.api_key, "sca_a_b", "sca_\x00_" + "a" * 36):
        with pytest.raises(AuthenticationError):
            token_id_of(junk)


def test_confirm__looks_again_in_the_transaction(key: NewApiKey, holder: Administrator) -> None:
    """A token revoked, an account removed or a role changed since authentication counts at the commit."""
    known = authenticate(key.api_key, holder, NOW_US)
    assert confirm(known, replace(holder, role=Role.AUDITOR), NOW_US).role is Role.AUDITOR
    ended = (None, replace(holder, tokens=()), replace(holder, removed_at_us=1), replace(holder, id="eve"))
    for account in ended:
        with pytest.raises(RefusedError) as caught:
            confirm(known, account, NOW_US)
        assert caught.value.code is Code.ACTOR_ENDED
    with pytest.raises(RefusedError):
        confirm(known, holder, EXPIRY_US)

"""Plans of changes: all that is written, the revision, and no secret on record."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace

import pytest

from sidecar.domain import changes, roles
from sidecar.domain.accounts import Administrator, AdminToken, confirm
from sidecar.domain.administrators import CreateAdministrator, IssueToken, NewToken
from sidecar.domain.audit import ChainHead, empty_chain
from sidecar.domain.changes import (
    AdminRequest,
    ChangeContext,
    ChangePlan,
    Current,
    LiveSidecar,
    Position,
    Revision,
    plan,
    plan_administration,
    unconfirmed,
)
from sidecar.domain.enforcement import Rule
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.records import describe, difference, from_stored, record_digest, stored_text, to_stored
from sidecar.domain.refusals import Code, GenerationConflictError, RefusedError
from sidecar.domain.roles import Role
from tests.administration import (
    ANN,
    DAY_US,
    ID,
    LIFECYCLE,
    NOW_US,
    active,
    after,
    create,
    credential,
    digest,
    examples,
    preparation,
    reissued,
    request,
    secret,
)

HOLDER = Administrator(
    "ann", "Ann", Role.ADMIN, NOW_US, (AdminToken("tokenann", digest("tokenann"), NOW_US, NOW_US + DAY_US),)
)
CONTEXT = ChangeContext("req-1", "127.0.0.1")


def planned(
    record: Integration | None, command: c.Command, head: ChainHead | None = None, expected: int | None = None
) -> ChangePlan:
    """What *command* of ann writes."""
    current = Current(record, False, HOLDER, head or empty_chain())
    return plan(LIFECYCLE, current, request(command, ANN, expected), NOW_US)


@pytest.mark.parametrize("module", [changes, roles])
def test_changes__examples_in_its_docstrings(module: object) -> None:
    """The examples in the modules are true."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", c.COMMANDS)
def test_plan__entry_says_it_all_and_no_secret(kind: type[c.Command]) -> None:
    """Each change is on record with who, what, where from and why; without digest, key or sealed secret."""
    made = planned(after(preparation(kind)), examples()[kind])
    assert made.entry is not None and made.stored is not None
    entry = made.entry
    assert (entry.actor, entry.role, entry.token_id) == ("ann", "admin", "tokenann")
    assert (entry.action, entry.subject) == (kind.action_name, f"integration:{ID}")
    assert (entry.source, entry.request_id, entry.reason) == ("127.0.0.1", "req-1", examples()[kind].reason)
    assert (entry.sequence, entry.generation) == (1, made.outcome.record.generation)
    assert entry.record_digest == record_digest(made.stored)
    body = entry.to_stored().body
    for name in ("live", "next", "more", "first", "second", "new", "old1"):
        for hidden in (digest(name), digest(name).removeprefix("sha256:"), secret(name).sealed):
            assert hidden not in body


@pytest.mark.parametrize("kind", [CreateAdministrator, IssueToken])
def test_plan__tokens_leave_no_digest_on_record(kind: type[CreateAdministrator] | type[IssueToken]) -> None:
    """A new token is on record by its id alone."""
    fresh = NewToken("fresh", digest("fresh"), NOW_US + DAY_US)
    command = (
        CreateAdministrator(administrator_id="bob", name="Bob", role=Role.ADMIN, token=fresh)
        if kind is CreateAdministrator
        else IssueToken(administrator_id="ann", token=fresh)
    )
    actor = confirm(ANN, HOLDER, NOW_US)
    made = plan_administration({"ann": HOLDER}, empty_chain(), AdminRequest(command, actor, CONTEXT), NOW_US)
    assert made.entry is not None and made.stored is not None
    assert "fresh" in made.entry.to_stored().body
    assert digest("fresh").removeprefix("sha256:") not in made.entry.to_stored().body
    assert digest("fresh") in made.stored


def test_plan__follows_the_head_and_never_goes_back_in_time() -> None:
    """An entry carries the digest of the one before, and no earlier time."""
    head = ChainHead(3, 41, "a" * 64, NOW_US + DAY_US)
    made = planned(active(), c.Suspend(integration_id=ID, reason="why"), head)
    assert made.entry is not None
    assert (made.entry.chain, made.entry.sequence, made.entry.previous) == (3, 42, "a" * 64)
    assert made.entry.at_us == made.outcome.record.suspensions[0].at_us == NOW_US + DAY_US + 1


def test_plan__no_change_writes_nothing() -> None:
    """All was so already: no entry, no generation."""
    made = planned(active(), c.EnableAllowlist(integration_id=ID))
    assert (made.entry, made.stored) == (None, None)
    assert made.outcome.record == active()


def test_plan__expected_generation() -> None:
    """A change that was decided on an older record is refused with both numbers."""
    assert planned(active(), c.DisableAllowlist(integration_id=ID), expected=1).outcome.is_change
    assert planned(None, create(), expected=0).outcome.is_change
    for record, expected, actual in ((active(), 2, 1), (active(), 0, 1), (None, 1, 0)):
        with pytest.raises(GenerationConflictError) as caught:
            planned(record, c.DisableAllowlist(integration_id=ID), expected=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, actual)
        assert caught.value.code is Code.GENERATION_CONFLICT


def test_plan__acts_as_the_registry_knows_the_actor() -> None:
    """The role on record is the one of the account now; an ended account changes nothing."""
    command = c.DisableAllowlist(integration_id=ID)
    demoted = Current(active(), False, replace(HOLDER, role=Role.AUDITOR), empty_chain())
    gone = Current(active(), False, None, empty_chain())
    for current, code in ((demoted, Code.ROLE_FORBIDS), (gone, Code.ACTOR_ENDED)):
        with pytest.raises(RefusedError) as caught:
            plan(LIFECYCLE, current, request(command), NOW_US)
        assert caught.value.code is code


@pytest.mark.parametrize("field", ["request_id", "source", "idempotency_key", "fingerprint"])
@pytest.mark.parametrize("text", ["x" * 129, "a\nb", "ä", "a\x00"])
def test_context__cannot_forge_lines(field: str, text: str) -> None:
    """What a caller sends along is bounded printable ASCII."""
    with pytest.raises(RefusedError) as caught:
        ChangeContext(**{"request_id": "r", "source": "s", field: text})
    assert caught.value.field == field


def test_context__request_id_is_no_secret() -> None:
    """A key pasted into the request id is refused; a fingerprint is a digest and may look like one."""
    with pytest.raises(RefusedError):
        ChangeContext("sck_q2R8mW0bTz_" + "a" * 36, "local")
    assert ChangeContext("r", "local", "key", "a" * 64).fingerprint


def test_revision__covers_position_by_position() -> None:
    """A revision reads back, and covers a change when its partition has come as far."""
    revision = Revision((7, 0, 12))
    assert Revision.parse(str(revision)) == revision
    assert revision.covers(Position(2, 12))
    assert not revision.covers(Position(1, 1))
    assert not revision.covers(Position(3, 0))
    for text in ("", "1.", "-1", "01", "1.x", "9" * 20, "1." * 2_000 + "1"):
        with pytest.raises(ValueError, match="revision"):
            Revision.parse(text)


def test_unconfirmed__names_who_lags() -> None:
    """A change is confirmed once every live sidecar has come as far."""
    sidecars = [LiveSidecar("b", Revision((4,)), 0), LiveSidecar("a", Revision((5,)), 0)]
    assert unconfirmed(sidecars, Position(0, 5)) == ("b",)
    assert unconfirmed(sidecars, Position(0, 4)) == ()


@pytest.mark.parametrize("kind", c.COMMANDS)
def test_record__round_trip_after_every_command(kind: type[c.Command]) -> None:
    """What a store keeps reads back as the same record, and equal records have equal text."""
    made = planned(after(preparation(kind)), examples()[kind])
    record = made.outcome.record
    again = from_stored(json.loads(stored_text(record)))
    assert again == record
    assert stored_text(again) == made.stored
    assert set(to_stored(record)) >= {"credentials", "generation", "suspended_generation"}


def test_record__shadow_is_stored_where_it_is_set() -> None:
    """Records from before the field keep their text; sidecars from before it ignore it, and enforce."""
    assert "shadow" not in to_stored(active())
    assert describe(active())["shadow"] == []
    record = replace(active(), shadow=frozenset({Rule.LIMIT, Rule.ALLOWLIST}))
    assert to_stored(record)["shadow"] == ["allowlist", "limit"]
    assert from_stored(to_stored(record)) == record


@pytest.mark.parametrize("policy", [None, *FailPolicy])
def test_record__on_store_error_is_stored_where_it_is_set(policy: FailPolicy | None) -> None:
    """A record from before the field reads as one without, and its text stays as it was."""
    record = replace(active(), on_store_error=policy)
    stored = to_stored(record)
    assert from_stored(stored) == record
    assert ("on_store_error" in stored) is (policy is not None)
    assert describe(record)["on_store_error"] == (policy.value if policy is not None else None)


def test_describe__has_no_digest() -> None:
    """The public form of a record names credentials by id, with what became of them."""
    public = describe(reissued())
    assert "sha256" not in json.dumps(public)
    assert {"old1", "new1"} == set(public["credentials"])  # type: ignore[arg-type]


def test_difference__only_what_differs() -> None:
    """Of credentials only those that came, went or changed are named."""
    two = active(credentials=(credential("a"), credential("b")))
    one = replace(two, credentials=two.credentials[:1], name="Other")
    before, changed = difference(two, one)
    assert set(before) == {"name", "credentials"}
    assert set(before["credentials"]) == {"b"}  # type: ignore[arg-type]
    assert changed == {"name": "Other", "credentials": {}}
    assert difference(two, two) == ({}, {})

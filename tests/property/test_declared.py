"""Declared integrations: a plan leads from anything that a registry may hold to what the file says, once."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, event, given
from hypothesis import strategies as st

from sidecar.domain.cidr import parse_cidr
from sidecar.domain.declared import (
    ComparisonContext,
    Declaration,
    Difference,
    DifferenceKind,
    compare,
    differ,
)
from sidecar.domain.effective import is_live
from sidecar.domain.enforcement import Rule
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import Credential, Integration, LimitRaise, Status, Suspension
from sidecar.domain.scopes import Scope
from tests.administration import ANN, BOB, DAY_US, ID, LIFECYCLE, NOW_US, apply, digest

NAMES = tuple(f"k{number}" for number in range(5))
TEXTS = st.sampled_from(["", "ops@acme.example", "Agency"])
SCOPES = st.frozensets(
    st.sampled_from([Scope("orders", "read"), Scope("orders", "write"), Scope("crm", "read")])
)
ENTRIES = st.lists(
    st.sampled_from([parse_cidr(text) for text in ("10.0.0.0/8", "192.0.2.1", "::/0")]), max_size=4
).map(tuple)
ENDS = st.sampled_from([None, NOW_US - DAY_US, NOW_US + DAY_US, NOW_US + 2 * DAY_US])
OPTIONAL = ("status", "contact", "owner", "third_party_manager")


@st.composite
def credentials(draw: st.DrawFn, is_held: bool) -> tuple[Credential, ...]:
    """Credentials with different ids: as a registry holds them, or as a file declares them."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    generations = st.integers(1, 6) if is_held else st.just(0)
    return tuple(
        Credential(
            name,
            digest(name + draw(st.sampled_from(["", "", "", "another"]))),
            draw(ENDS),
            issued_generation=draw(generations),
            replaced_by=draw(st.sampled_from(["", "", "later"])) if is_held else "",
        )
        for name in names
    )


@st.composite
def records(draw: st.DrawFn, is_held: bool) -> Integration:
    """An integration, as a registry may hold it or as a file may declare it."""
    entries = draw(ENTRIES)
    status = draw(st.sampled_from(Status))
    rpm = draw(st.integers(1, 10_000))
    suspensions: tuple[Suspension, ...] = ()
    if is_held and status is Status.SUSPENDED:
        by = draw(st.sampled_from([ANN.id, BOB.id]))
        suspensions = (Suspension(by, NOW_US - DAY_US, "leak", 3, NOW_US - DAY_US),)
    return Integration(
        id=ID,
        name=draw(st.sampled_from(["Acme", "Acme Ltd"])),
        status=status,
        scopes=draw(SCOPES),
        rate_limit_rpm=rpm,
        burst=draw(st.none() | st.integers(1, 100)),
        ip_allowlist=entries,
        is_allowlist_enabled=draw(st.booleans()) if entries or not is_held else False,
        credentials=draw(credentials(is_held)),
        generation=7 if is_held else 1,
        contact=draw(TEXTS),
        owner=draw(TEXTS),
        third_party_manager=draw(TEXTS),
        limit_raise=LimitRaise(10_000, None, NOW_US + DAY_US) if is_held and draw(st.booleans()) else None,
        suspensions=suspensions,
        suspended_generation=3 if suspensions or (is_held and draw(st.booleans())) else 0,
        on_store_error=draw(st.none() | st.sampled_from(FailPolicy)),
        shadow=draw(st.frozensets(st.sampled_from(Rule))),
    )


HELD = records(is_held=True)
DECLARATIONS = st.builds(
    lambda record, left_out: Declaration(
        record, frozenset({"id", "name", "scopes", *OPTIONAL} - set(left_out))
    ),
    records(is_held=False),
    st.lists(st.sampled_from(OPTIONAL), unique=True),
)
TERMS = st.builds(
    ComparisonContext,
    st.just(LIFECYCLE),
    st.sampled_from([ANN, BOB]),
    st.just(NOW_US),
    st.just("declared"),
    st.booleans(),
)


def applied(held: Integration | None, difference: Difference, terms: ComparisonContext) -> Integration | None:
    """The record after the steps, as a registry would make them one by one."""
    record = held
    for step in difference.steps:
        assert step.expected_generation == (record.generation if record is not None else 0)
        outcome = apply(record, step.command, terms.actor, NOW_US)
        assert outcome.is_change
        record = outcome.record
    return record


def as_declared(declaration: Declaration, held: Integration | None, terms: ComparisonContext) -> Integration:
    """What a registry must hold in the end, in what can be declared, worked out without a command."""
    declared, before = declaration.record, held or Integration(ID, "-")
    kept = {name: getattr(before, name) for name in OPTIONAL if held and name not in declaration.keys}
    return replace(declared, **kept)


def comparable(record: Integration) -> dict[str, object]:
    """What is compared: without order, and without a switch that has no effect."""
    return {
        **{
            name: getattr(record, name)
            for name in ("name", "rate_limit_rpm", "burst", "on_store_error", "shadow")
        },
        **{name: getattr(record, name) for name in OPTIONAL},
        "scopes": record.scopes,
        "entries": frozenset(record.ip_allowlist),
        "is_on": bool(record.ip_allowlist) and record.is_allowlist_enabled,
    }


def live_keys(record: Integration) -> dict[str, tuple[str, int | None]]:
    """The credentials that work, or will once it is active."""
    return {
        credential.id: (credential.digest, credential.expires_at_us)
        for credential in record.credentials
        if is_live(record, credential, NOW_US)
    }


@given(declaration=DECLARATIONS, held=st.none() | st.one_of([HELD] * 4), terms=TERMS)
def test_differ__leads_to_what_is_declared(
    declaration: Declaration, held: Integration | None, terms: ComparisonContext
) -> None:
    """Where nothing is refused, the steps lead to the declared record, and leave nothing to do."""
    difference = differ(declaration, held, terms)
    final = applied(held, difference, terms)
    event(f"{difference.kind.value}, {'refused' if difference.refusals else 'whole'}")
    assume(not difference.refusals)
    assert final is not None
    assert comparable(final) == comparable(as_declared(declaration, held, terms))
    wanted = {
        credential.id: (credential.digest, credential.expires_at_us)
        for credential in declaration.record.credentials
        if credential.expires_at_us is None or credential.expires_at_us > NOW_US
    }
    live = live_keys(final)
    for id in live.keys() & wanted.keys():
        assert live[id] == wanted[id]
    if final.status is Status.ACTIVE:
        assert wanted.keys() <= live.keys()
    expired = {credential.id for credential in declaration.record.credentials} - wanted.keys()
    assert not live.keys() & expired
    if terms.has_prune:
        assert {credential.id for credential in final.credentials} <= {
            credential.id for credential in declaration.record.credentials
        }
    again = differ(declaration, final, terms)
    assert (again.kind, again.steps, again.fields, again.refusals) == (DifferenceKind.NONE, (), (), ())


@given(declaration=DECLARATIONS, held=HELD, terms=TERMS)
def test_differ__what_the_rules_refuse_is_explained_and_the_rest_is_done(
    declaration: Declaration, held: Integration, terms: ComparisonContext
) -> None:
    """Every refusal says why and what to do; only what it names keeps the record from being as declared."""
    difference = differ(declaration, held, terms)
    final = applied(held, difference, terms)
    assert final is not None
    for refusal in difference.refusals:
        assert refusal.problem.message
        assert refusal.problem.remedy
    words = {refusal.action_name for refusal in difference.refusals}
    got, wanted = comparable(final), comparable(as_declared(declaration, held, terms))
    if words:
        event("refused: " + ", ".join(sorted(words)))
    off = {name for name in got if got[name] != wanted[name]}
    assert off <= ({"status"} if "integration.reactivate" in words else set())
    assert applied(final, differ(declaration, final, terms), terms) == final or "" in words


@given(declaration=DECLARATIONS, held=HELD, terms=TERMS)
def test_differ__never_opens_more_than_before_or_after(
    declaration: Declaration, held: Integration, terms: ComparisonContext
) -> None:
    """A plan that stops after any step permits no scope that neither the old nor the new record has."""
    difference = differ(declaration, held, terms)
    record, scopes = held, held.scopes
    for step in difference.steps:
        record = apply(record, step.command, terms.actor, NOW_US).record
        assert record.scopes <= scopes | declaration.record.scopes
        if record.status is Status.ACTIVE and held.status is Status.SUSPENDED:
            assert step is difference.steps[-1]


@given(declaration=DECLARATIONS, held=HELD, terms=TERMS)
def test_compare__prunes_only_on_request(
    declaration: Declaration, held: Integration, terms: ComparisonContext
) -> None:
    """An integration that the file does not name is deleted with prune, and else only counted."""
    other = replace(held, id="other", credentials=())
    plan = compare([declaration], [held, other], terms)
    removed = [
        difference.integration_id
        for difference in plan.differences
        if difference.kind is DifferenceKind.REMOVE
    ]
    assert removed == (["other"] if terms.has_prune else [])
    assert plan.kept_integrations == (() if terms.has_prune else ("other",))

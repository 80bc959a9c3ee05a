"""The lifecycle's laws, over any sequence of commands: what a suspension ends stays ended."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.domain.effective import in_force, is_live
from sidecar.domain.integrations import Integration, Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import Facts
from sidecar.domain.lifecycle.states import TRANSITIONS, state_of
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Actor
from tests.administration import (
    ANN,
    BOB,
    CAT,
    DAY_US,
    HOUR_US,
    ID,
    NOW_US,
    OLLI,
    apply,
    create,
    credential,
)

NAMES = st.sampled_from([f"c{number}" for number in range(8)])
ACTORS = st.sampled_from([ANN, BOB, CAT, OLLI])
TIMES = st.integers(NOW_US - DAY_US, NOW_US + 3 * DAY_US)
OVERLAPS = st.sampled_from([0, HOUR_US, DAY_US])
ENTRIES = st.lists(st.sampled_from(["10.0.0.0/8", "10.0.0.0/24", "192.0.2.1", "::/0"]), max_size=3).map(tuple)
SCOPES = st.lists(st.sampled_from(["orders:read", "orders:write", "crm:read"]), max_size=2).map(tuple)


def on(kind: type[c.Command], **fields: st.SearchStrategy[object]) -> st.SearchStrategy[c.Command]:
    """Commands of *kind* on the one integration of these tests."""
    return st.builds(kind, integration_id=st.just(ID), reason=st.just("because"), **fields)


COMMANDS = st.one_of(
    st.builds(create, credentials=st.lists(NAMES.map(credential), max_size=2).map(tuple)),
    on(c.Suspend),
    on(c.Reactivate),
    on(c.DeleteIntegration),
    on(c.IssueCredential, credential=st.builds(credential, NAMES, st.none() | TIMES)),
    on(c.RotateCredential, credential_id=NAMES, credential=NAMES.map(credential), overlap_us=OVERLAPS),
    on(c.RevokeCredential, credential_id=NAMES),
    on(c.SetCredentialExpiry, credential_id=NAMES, expires_at_us=st.none() | TIMES),
    on(c.AddScopes, scopes=SCOPES),
    on(c.RemoveScopes, scopes=SCOPES),
    on(c.SetAllowlist, entries=ENTRIES),
    on(c.AddAllowlistEntries, entries=ENTRIES),
    on(c.RemoveAllowlistEntries, entries=ENTRIES),
    on(c.EnableAllowlist),
    on(c.DisableAllowlist),
    on(c.SetRateLimit, rate_limit_rpm=st.integers(0, 10_001)),
    on(c.RaiseLimit, rate_limit_rpm=st.integers(0, 10_001), until_us=TIMES),
    on(c.EndLimitRaise),
)


class Life(RuleBasedStateMachine):
    """One integration, any commands by anyone, a clock that also steps back; beside it what must hold."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__()
        self.record: Integration | None = None
        self.is_deleted = False
        self.now_us = NOW_US
        self.recorded_at_us = 0
        self.used: set[str] = set()
        self.ended: set[str] = set()
        self.suspenders: set[str] = set()

    @rule(by_us=st.integers(-HOUR_US, DAY_US))
    def time_passes(self, by_us: int) -> None:
        """The clock moves on, or back."""
        self.now_us += by_us

    @rule(command=COMMANDS, actor=ACTORS)
    def command_is_given(self, command: c.Command, actor: Actor) -> None:
        """A command changes the record by one generation, or is refused and changes nothing."""
        before = self.record
        state = state_of(before, self.is_deleted, self.now_us)
        facts = Facts(self.is_deleted, (), self.recorded_at_us)
        try:
            outcome = apply(before, command, actor, self.now_us, facts)
        except RefusedError:
            return
        if set(outcome.claims) & self.used:
            return  # the store refuses a credential id that was used before
        assert state_of(outcome.record, outcome.is_deleted, self.now_us) in TRANSITIONS[type(command)][state]
        if not outcome.is_change:
            assert outcome.record == before
            return
        assert outcome.record.generation == (before.generation if before is not None else 0) + 1
        assert outcome.record.changed_at_us > self.recorded_at_us
        self.recorded_at_us = outcome.record.changed_at_us
        self.used |= set(outcome.claims)
        self.note(command, actor, outcome.record)
        self.record = None if outcome.is_deleted else outcome.record
        self.is_deleted = self.is_deleted or outcome.is_deleted

    def note(self, command: c.Command, actor: Actor, after: Integration) -> None:
        """Keep what must hold from here on, by means of its own."""
        if isinstance(command, c.Suspend):
            self.ended |= self.used
            self.suspenders.add(actor.id)
        elif isinstance(command, c.Reactivate):
            assert actor.id not in self.suspenders
            assert {one.id for one in after.credentials if is_live(after, one, self.now_us)} - self.ended
            self.suspenders.clear()
        elif isinstance(command, c.RevokeCredential):
            self.ended.add(command.credential_id)
        elif isinstance(command, c.DeleteIntegration):
            self.ended |= self.used

    @invariant()
    def no_ended_credential_works(self) -> None:
        """A credential that existed at a suspension, or was revoked, never opens anything again."""
        if self.record is None:
            return
        live = {one.id for one in self.record.credentials if is_live(self.record, one, self.now_us)}
        assert not live & self.ended
        if self.record.status is Status.ACTIVE:
            assert not {one.id for one in in_force(self.record, self.now_us).credentials} & self.ended

    @invariant()
    def suspenders_are_on_record(self) -> None:
        """Everyone who suspended since the last reactivation is named; only then is it suspended."""
        if self.record is not None:
            assert {one.by for one in self.record.suspensions} == self.suspenders
            assert (self.record.status is Status.SUSPENDED) == bool(self.suspenders)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

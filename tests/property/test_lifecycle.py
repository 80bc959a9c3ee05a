"""The lifecycle's laws, over any sequence of commands: what a suspension ends stays ended."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.domain.effective import in_force, is_live
from sidecar.domain.enforcement import RULE_NAMES
from sidecar.domain.integrations import Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import Facts
from sidecar.domain.lifecycle.states import TRANSITIONS, state_of
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Actor, Grant
from tests.administration import ANN, BOB, CAT, DAY_US, HOUR_US, ID, NOW_US, OLLI, apply, create, credential

NAMES = st.sampled_from([f"c{number}" for number in range(8)])
PEOPLE = st.sampled_from([ANN, BOB, CAT, OLLI])
TIMES = st.integers(NOW_US - DAY_US, NOW_US + 3 * DAY_US)
OVERLAPS = st.sampled_from([0, HOUR_US, DAY_US])
ENTRIES = st.lists(st.sampled_from(["10.0.0.0/8", "10.0.0.0/24", "192.0.2.1", "::/0"]), max_size=3).map(tuple)
SCOPES = st.lists(st.sampled_from(["orders:read", "orders:write", "crm:read"]), max_size=2).map(tuple)


def on(kind: type[c.Command], **fields: st.SearchStrategy[object]) -> st.SearchStrategy[c.Command]:
    """Commands of *kind* on the one integration of these tests."""
    return st.builds(kind, integration_id=st.just(ID), reason=st.just("because"), **fields)


COMMANDS = st.one_of(
    st.just(create()),
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
    on(c.SetShadow, shadow=st.lists(st.sampled_from(RULE_NAMES), max_size=3).map(tuple)),
    on(c.SetOnStoreError, on_store_error=st.sampled_from([None, "deny", "allow", "local"])),
)


class Life(RuleBasedStateMachine):
    """One integration after another, any commands by anyone, a clock that steps back; beside it the laws."""

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__()
        self.now_us = NOW_US
        self.recorded_at_us = 0
        self.fresh = itertools.count(8)
        self.begin_anew()

    def begin_anew(self) -> None:
        """The next integration, with a credential; what was recorded so far stays earlier."""
        new = credential(f"c{next(self.fresh)}")
        facts = Facts(recorded_at_us=self.recorded_at_us)
        self.record = apply(None, create(credentials=(new,)), ANN, self.now_us, facts).record
        self.recorded_at_us = self.record.changed_at_us
        self.used: set[str] = {new.id}
        self.ended: set[str] = set()
        self.suspended: dict[str, int] = {}
        """Who suspended it since the last reactivation, and when first."""

    @rule(by_us=st.integers(-HOUR_US, DAY_US))
    def time_passes(self, by_us: int) -> None:
        """The clock moves on, or back."""
        self.now_us += by_us

    @rule(command=COMMANDS, actor=PEOPLE)
    def command_is_given(self, command: c.Command, actor: Actor) -> None:
        """Some command is given by someone."""
        self.give(command, actor)

    @rule(suspender=PEOPLE, issuer=PEOPLE, is_reissued=st.booleans())
    def incident(self, suspender: Actor, issuer: Actor, is_reissued: bool) -> None:
        """It is suspended, and perhaps a fresh credential is issued."""
        self.give(c.Suspend(integration_id=ID, reason="leak"), suspender)
        if is_reissued:
            new = credential(f"c{next(self.fresh)}")
            self.give(c.IssueCredential(integration_id=ID, credential=new), issuer)

    @rule(actor=PEOPLE, is_gift=st.booleans(), ago_us=st.sampled_from([0, 1, 2, 3, HOUR_US, 3 * DAY_US]))
    def reactivation_is_tried(self, actor: Actor, is_gift: bool, ago_us: int) -> None:
        """Someone tries to reactivate it, perhaps by access that a suspender gave, some time ago."""
        if is_gift:
            grants = (Grant(giver, self.recorded_at_us - ago_us) for giver in self.suspended)
            actor = replace(actor, grants=tuple(grants)[-1:])
        self.give(c.Reactivate(integration_id=ID, reason="mended"), actor)

    def give(self, command: c.Command, actor: Actor) -> None:
        """A command changes the record by one generation, or is refused and changes nothing."""
        before = self.record
        state = state_of(before, False, self.now_us)
        try:
            outcome = apply(before, command, actor, self.now_us, Facts(recorded_at_us=self.recorded_at_us))
        except RefusedError:
            return
        if set(outcome.claims) & self.used:
            return  # the store refuses a credential id that was used before
        assert state_of(outcome.record, outcome.is_deleted, self.now_us) in TRANSITIONS[type(command)][state]
        if not outcome.is_change:
            assert outcome.record == before
            return
        assert outcome.record.generation == before.generation + 1
        assert outcome.record.changed_at_us > self.recorded_at_us
        self.recorded_at_us = outcome.record.changed_at_us
        self.used |= set(outcome.claims)
        self.record = outcome.record
        self.note(command, actor)
        if outcome.is_deleted:
            self.begin_anew()

    def note(self, command: c.Command, actor: Actor) -> None:
        """Keep what must hold from here on, by separate means."""
        if isinstance(command, c.Suspend):
            self.ended |= self.used
            self.suspended.setdefault(actor.id, self.recorded_at_us)
        elif isinstance(command, c.Reactivate):
            event("reactivated")
            first_at_us = min(self.suspended.values())
            givers = {grant.by for grant in actor.grants if grant.at_us >= first_at_us}
            assert not ({actor.id} | givers) & set(self.suspended)
            assert self.live() - self.ended
            self.suspended.clear()
        elif isinstance(command, c.RevokeCredential):
            self.ended.add(command.credential_id)

    def live(self) -> set[str]:
        """The credentials that work, or will once it is active."""
        return {
            credential.id
            for credential in self.record.credentials
            if is_live(self.record, credential, self.now_us)
        }

    @invariant()
    def no_ended_credential_works(self) -> None:
        """A credential that existed at a suspension, or was revoked, never opens anything again."""
        assert not self.live() & self.ended
        if self.record.status is Status.ACTIVE:
            assert (
                not {credential.id for credential in in_force(self.record, self.now_us).credentials}
                & self.ended
            )

    @invariant()
    def suspenders_are_on_record(self) -> None:
        """Everyone who suspended since the last reactivation is named; only then is it suspended."""
        assert {suspension.by for suspension in self.record.suspensions} == set(self.suspended)
        assert (self.record.status is Status.SUSPENDED) == bool(self.suspended)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)

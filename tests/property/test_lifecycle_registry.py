"""
The registry under any sequence of calls, crossing administrators and crashes: four eyes, and a whole chain.

After every step the audit log is read as an investigator would read it: by itself it must show that nobody
reactivated what they suspended, that no old credential works, and that no confirmed change is missing.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sidecar.domain.administrators import (
    AdminCommand,
    CreateAdministrator,
    IssueToken,
    RemoveAdministrator,
    RevokeToken,
)
from sidecar.domain.audit import AuditEntry, parse_entry
from sidecar.domain.changes import AdminCommitted, AdminRequest, Committed
from sidecar.domain.effective import in_force
from sidecar.domain.integrations import Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Actor, Role
from sidecar.stores.registry.protocol import AuditQuery
from sidecar.stores.registry.sqlite.file import connect
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.stores.registry.verification import verify_registry
from tests.administration import ANN, BOB, CAT, DAY_US, HOUR_US, LIFECYCLE, create, credential, request
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import CONTEXT, found, new_token

NAMES = st.sampled_from([f"c{number}" for number in range(4)])
"""Credential ids that are asked for again and again; fresh ones come beside them."""


def on(kind: type[c.Command], **fields: object) -> c.Command:
    """A command of *kind* on the integration of these tests, with a reason."""
    return kind(**{"reason": "because", **fields})  # type: ignore[arg-type]


class Crash:
    """Takes what is on disk before the n-th statement of a change: what a kill at that moment leaves."""

    def __init__(self) -> None:
        """Not armed."""
        self._remaining = 0
        self._source = self._target = Path()

    def connect(self, path: Path) -> sqlite3.Connection:
        """A connection whose statements count."""
        database = connect(path)
        database.set_trace_callback(self._count)
        return database

    def arm(self, source: Path, target: Path, statement: int) -> None:
        """Take *source* as it is before statement number *statement* and put it at *target*."""
        self._source, self._target, self._remaining = source, target, statement

    def take_now(self) -> None:
        """Take it now, unless it was taken."""
        if self._remaining > 0:
            self._remaining = 1
            self._count("")

    def _count(self, statement: str) -> None:
        if self._remaining > 0:
            self._remaining -= 1
            if self._remaining == 0:
                for suffix in ("", "-wal"):
                    source = self._source.with_name(self._source.name + suffix)
                    if source.exists():
                        shutil.copy(source, self._target.with_name(self._target.name + suffix))


class RegistryLife(RuleBasedStateMachine):
    """Two processes' handles on one registry, administrators who may conspire, and crashes."""

    def __init__(self) -> None:
        """Make an empty registry."""
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = Path(tempfile.mkdtemp(prefix="registry-"))
        self._crash = Crash()
        self._numbers = itertools.count()
        self.clock = ManualClock()
        self.path = self._folder / "life.db"
        self.handles: list[SqliteRegistry] = []
        self.integration = "first"
        self.tokens = [(actor.id, actor.token_id) for actor in (ANN, BOB, CAT)]
        """Accounts and their tokens, also such as were refused or ended: all of them are tried."""
        self.confirmed: list[str] = []
        """Digests of the entries of all confirmed changes, in no order."""

    @initialize()
    def is_founded(self) -> None:
        """ann, bob and cat are admins; there is an integration with a credential."""
        self._open()
        self._runner.run(found(self.handles[0], self.clock))
        self._give(create(self.integration, credentials=(credential("c0"),)), ANN)

    def _open(self) -> None:
        async def opened() -> SqliteRegistry:
            return await SqliteRegistry.open(
                self.path, LIFECYCLE, clock_us=self.clock, connect=self._crash.connect
            )

        self.handles = [self._runner.run(opened()) for _ in range(2)]

    def _close(self) -> None:
        for handle in self.handles:
            self._runner.run(handle.aclose())
        self.handles = []

    def teardown(self) -> None:
        """Let go of everything."""
        self._close()
        self._runner.close()
        shutil.rmtree(self._folder)

    def _confirm(self, made: Committed | AdminCommitted | BaseException) -> None:
        if isinstance(made, (Committed, AdminCommitted)):
            if made.entry is not None:
                self.confirmed.append(made.entry.to_stored().digest)
                event(made.entry.action)
        elif not isinstance(made, RefusedError):
            raise made

    def _actors(self) -> st.SearchStrategy[Actor]:
        """Anyone by any token that was ever asked for."""
        return st.sampled_from(self.tokens).map(lambda held: Actor(held[0], Role.ADMIN, held[1]))

    def _fresh(self) -> str:
        return f"n{next(self._numbers)}"

    def _commands(self) -> st.SearchStrategy[c.Command]:
        """What administrators do to the integration, suspending and reactivating above all."""
        make = partial(partial, on, integration_id=self.integration)
        fresh = credential(self._fresh())
        return st.one_of(
            st.just(on(c.Suspend, integration_id=self.integration)),
            st.just(on(c.Reactivate, integration_id=self.integration)),
            st.just(on(c.Reactivate, integration_id=self.integration)),
            st.just(on(c.IssueCredential, integration_id=self.integration, credential=fresh)),
            st.builds(make(c.IssueCredential), credential=NAMES.map(credential)),
            st.builds(make(c.RotateCredential), credential_id=NAMES, credential=NAMES.map(credential)),
            st.builds(make(c.RevokeCredential), credential_id=NAMES),
            st.just(on(c.SetRateLimit, integration_id=self.integration, rate_limit_rpm=7)),
        )

    def _give(self, command: c.Command, actor: Actor) -> None:
        try:
            self._confirm(self._runner.run(self.handles[0].apply(request(command, actor))))
        except RefusedError:
            return

    @rule(by_us=st.integers(-HOUR_US, DAY_US))
    def time_passes(self, by_us: int) -> None:
        """The clock moves on, or back."""
        self.clock.advance(us=by_us)

    @rule(data=st.data(), is_reissued=st.booleans())
    def incident(self, data: st.DataObject, is_reissued: bool) -> None:
        """It is suspended, and perhaps a fresh credential is issued."""
        self._give(on(c.Suspend, integration_id=self.integration), data.draw(self._actors()))
        if is_reissued:
            issue = on(
                c.IssueCredential, integration_id=self.integration, credential=credential(self._fresh())
            )
            self._give(issue, data.draw(self._actors()))

    @rule(data=st.data(), detours=st.lists(st.sampled_from(["account", "token", "own token"]), max_size=3))
    def conspiracy(self, data: st.DataObject, detours: list[str]) -> None:
        """Someone suspends it, gives access over a few detours, and tries to reactivate it at their end."""
        actor = data.draw(self._actors())
        self._give(on(c.Suspend, integration_id=self.integration), actor)
        new = credential(self._fresh())
        self._give(on(c.IssueCredential, integration_id=self.integration, credential=new), actor)
        for how in detours:
            actor = self._access(how, actor, data.draw(self._actors()))
        self._give(on(c.Reactivate, integration_id=self.integration), actor)

    @rule(data=st.data())
    def reactivation_is_tried(self, data: st.DataObject) -> None:
        """Someone tries to reactivate it."""
        self._give(on(c.Reactivate, integration_id=self.integration), data.draw(self._actors()))

    @rule(data=st.data())
    def changes_cross(self, data: st.DataObject) -> None:
        """Several administrators change things at the same moment, through two processes."""
        change = st.tuples(self._commands(), self._actors(), st.integers(0, 1))
        changes = data.draw(st.lists(change, min_size=1, max_size=4))

        async def cross() -> list[Committed | BaseException]:
            calls = [self.handles[which].apply(request(command, actor)) for command, actor, which in changes]
            return await asyncio.gather(*calls, return_exceptions=True)

        for made in self._runner.run(cross()):
            self._confirm(made)

    @rule(data=st.data(), how=st.sampled_from(["account", "token", "own token", "own token"]))
    def access_is_given(self, data: st.DataObject, how: str) -> None:
        """An administrator makes an account, or a token for another or for itself: perhaps a way round."""
        self._access(how, data.draw(self._actors()), data.draw(self._actors()))

    def _access(self, how: str, giver: Actor, other: Actor) -> Actor:
        """The access that *giver* gives: a new account, or a token for *other* or for itself."""
        name = self._fresh()
        token = new_token(f"token{name}", self.clock)
        command: AdminCommand
        if how == "account":
            command = CreateAdministrator(administrator_id=name, name=name, role=Role.ADMIN, token=token)
        else:
            holder = giver.id if how == "own token" else other.id
            command = IssueToken(administrator_id=holder, token=token)
        self.tokens.append((command.administrator_id, token.id))
        self._administer(command, giver)
        return Actor(command.administrator_id, Role.ADMIN, token.id)

    @rule(data=st.data(), is_account=st.booleans())
    def access_ends(self, data: st.DataObject, is_account: bool) -> None:
        """An account is removed, or a token revoked."""
        actor, other = data.draw(self._actors()), data.draw(self._actors())
        if is_account:
            self._administer(RemoveAdministrator(administrator_id=other.id), actor)
        else:
            self._administer(RevokeToken(administrator_id=other.id, token_id=other.token_id), actor)

    def _administer(self, command: AdminCommand, actor: Actor) -> None:
        try:
            made = self._runner.run(self.handles[0].administer(AdminRequest(command, actor, CONTEXT)))
        except RefusedError:
            return
        self._confirm(made)

    @rule(data=st.data())
    def it_is_deleted(self, data: st.DataObject) -> None:
        """It is deleted; someone tries to make it again, then another one with an old credential."""
        self._give(on(c.DeleteIntegration, integration_id=self.integration), data.draw(self._actors()))
        self._give(create(self.integration), data.draw(self._actors()))
        old = tuple(credential(name) for name in data.draw(st.lists(NAMES, max_size=1)))
        self.integration = self._fresh()
        self._give(create(self.integration, credentials=old), data.draw(self._actors()))
        self._give(create(self.integration), ANN)

    @rule(data=st.data(), statement=st.integers(1, 30))
    def process_is_killed(self, data: st.DataObject, statement: int) -> None:
        """Everything dies in the middle of a change, and starts again from what is on disk."""
        command, actor = data.draw(self._commands()), data.draw(self._actors())
        target = self._folder / f"life-{self._fresh()}.db"
        self._crash.arm(self.path, target, statement)
        with suppress(RefusedError):
            self._runner.run(self.handles[0].apply(request(command, actor)))
        self._crash.take_now()
        self._close()
        target.chmod(0o600)
        self.path = target
        self._open()

    def _entries(self) -> list[AuditEntry]:
        async def read() -> list[AuditEntry]:
            entries: list[AuditEntry] = []
            after = ""
            while True:
                page = await self.handles[0].audit(AuditQuery(after=after, limit=500))
                entries += [parse_entry(stored.body) for stored in page.entries]
                after = page.next_after
                if not after:
                    return entries

        return self._runner.run(read())

    @invariant()
    def chain_is_whole(self) -> None:
        """The registry verifies, and every confirmed change is in the chain, whatever died since."""
        if self.handles:
            assert self._runner.run(verify_registry(self.handles[1])).is_intact
            kept = {entry.to_stored().digest for entry in self._entries()}
            assert set(self.confirmed) <= kept

    @invariant()
    def trail_shows_four_eyes(self) -> None:
        """By its trail alone, nobody reactivated what they suspended, and no old credential works."""
        if not self.handles:
            return
        investigator = Investigator()
        for entry in self._entries():
            investigator.read(entry)
        for record in self._runner.run(self.handles[1].load_all()).records:
            story = investigator.stories[record.id]
            if record.status is Status.ACTIVE:
                works = {credential.id for credential in in_force(record, self.clock.now_us).credentials}
                assert not works & story.burnt
            else:
                assert story.suspenders == {suspension.by for suspension in record.suspensions}


class Story:
    """One integration, rebuilt from its audit entries."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.known: set[str] = set()
        self.burnt: set[str] = set()
        self.suspenders: set[str] = set()
        self.suspended_at = 0
        self.is_deleted = False


class Investigator:
    """Reads the audit log from the start, and objects to what must not be in it."""

    def __init__(self) -> None:
        """Nothing read yet."""
        self.stories: dict[str, Story] = {}
        self._gifts: dict[str, list[tuple[int, str, str]]] = {}
        """Account or token to (sequence, giver, the giver's token): who gave it access, and when."""
        self._claimed: set[str] = set()

    def read(self, entry: AuditEntry) -> None:
        """Take the next entry."""
        kind, _, subject = entry.subject.partition(":")
        if kind == "administrator":
            self._read_administrator(entry, subject)
        else:
            self._read_integration(entry, self.stories.setdefault(subject, Story()))

    def _read_administrator(self, entry: AuditEntry, subject: str) -> None:
        tokens = entry.after.get("tokens")
        for token in tokens if isinstance(tokens, dict) else ():
            if entry.action == "admin.create":
                self._gifts.setdefault(subject, []).append((entry.sequence, entry.actor, entry.token_id))
            if entry.action in ("admin.create", "admin.issue_token"):
                self._gifts.setdefault(f"token {token}", []).append(
                    (entry.sequence, entry.actor, entry.token_id)
                )

    def _read_integration(self, entry: AuditEntry, story: Story) -> None:
        assert not story.is_deleted, "a deleted integration lives"
        credentials = entry.after.get("credentials")
        fresh = set(credentials if isinstance(credentials, dict) else ()) - story.known
        assert not fresh & self._claimed, "a credential id was used twice"
        self._claimed |= fresh
        if entry.action == "integration.suspend":
            story.burnt |= story.known
            story.suspended_at = story.suspended_at or entry.sequence
            story.suspenders.add(entry.actor)
        elif entry.action == "integration.reactivate":
            givers = self._givers(entry.actor, entry.token_id, story.suspended_at)
            assert not ({entry.actor} | givers) & story.suspenders, "reactivated by its suspender"
            assert story.known - story.burnt, "reactivated without a new credential"
            story.suspenders, story.suspended_at = set(), 0
        elif entry.action == "integration.delete":
            story.is_deleted = True
        story.known |= fresh

    def _givers(self, account: str, token: str, since: int) -> set[str]:
        """Everyone from whom this account and token have access that was given since."""
        givers: set[str] = set()
        waiting = [account, f"token {token}"]
        while waiting:
            for sequence, giver, by_token in self._gifts.get(waiting.pop(), []):
                if sequence > since:
                    if giver != account:
                        givers.add(giver)
                    waiting += [giver, f"token {by_token}"]
        return givers


TestRegistryLife = RegistryLife.TestCase
TestRegistryLife.settings = settings(
    max_examples=8,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

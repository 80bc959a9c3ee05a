"""Values that tests of the control plane share: people, clocks, credentials, and records with a history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from sidecar.domain.changes import ChangeContext, ChangeRequest
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.machine import Lifecycle
from sidecar.domain.lifecycle.outcome import Facts, Outcome
from sidecar.domain.lifecycle.states import State
from sidecar.domain.roles import Actor, Role
from sidecar.domain.scopes import ScopeCatalogue

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
NOW_US = 1_764_000_000 * SECOND_US

LIFECYCLE = Lifecycle(ScopeCatalogue())

ANN = Actor("ann", Role.ADMIN, "tokenann")
BOB = Actor("bob", Role.ADMIN, "tokenbob")
CAT = Actor("cat", Role.ADMIN, "tokencat")
OLLI = Actor("olli", Role.OPERATOR, "tokenolli")
AUDREY = Actor("audrey", Role.AUDITOR, "tokenaudrey")

ID = "acme"


def digest(name: str) -> str:
    """The digest of the key called *name*."""
    return "sha256:" + sha256(name.encode()).hexdigest()


def credential(name: str, expires_at_us: int | None = None) -> c.NewCredential:
    """A fresh credential; equal names, equal credentials."""
    return c.NewCredential(name, digest(name), expires_at_us)


def secret(name: str) -> c.SealedSecret:
    """A webhook secret as it is kept."""
    return c.SealedSecret(name, f"sealed:{sha256(name.encode()).hexdigest()}")


def create(integration_id: str = ID, **given: Any) -> c.CreateIntegration:
    """The command that creates an integration with a name."""
    return c.CreateIntegration(**{"integration_id": integration_id, "name": "Acme", **given})


def apply(
    record: Integration | None,
    command: c.Command,
    actor: Actor = ANN,
    now_us: int = NOW_US,
    facts: Facts | None = None,
) -> Outcome:
    """Apply one command under the default categories."""
    return LIFECYCLE.apply(record, command, actor, now_us, facts or Facts())


def history(*steps: tuple[Actor, c.Command], now_us: int = NOW_US) -> Integration:
    """The record after *steps*, each a second after the one before."""
    record: Integration | None = None
    for number, (actor, command) in enumerate(steps):
        record = apply(record, command, actor, now_us + number * SECOND_US).record
    assert record is not None
    return record


def active(**given: Any) -> Integration:
    """An active integration with one credential, 'old1', and two scopes and allowlist entries."""
    usual: dict[str, Any] = {
        "scopes": ("inventory:read", "inventory:write"),
        "allowlist": ("192.0.2.0/25", "192.0.2.128/25"),
        "credentials": (credential("old1"),),
    }
    return history((ANN, create(**{**usual, **given})))


def suspended(by: Actor = ANN) -> Integration:
    """One that *by* suspended; its credential 'old1' is invalidated."""
    return apply(active(), c.Suspend(integration_id=ID, reason="key leaked"), by).record


def reissued(by: Actor = ANN) -> Integration:
    """One that *by* suspended and that has the new credential 'new1' since."""
    return apply(suspended(by), c.IssueCredential(integration_id=ID, credential=credential("new1"))).record


def in_state(state: State) -> tuple[Integration | None, bool]:
    """A record in *state*, and whether it was deleted."""
    made: dict[State, Callable[[], Integration]] = {
        State.ACTIVE: active,
        State.SUSPENDED: suspended,
        State.REISSUED: reissued,
    }
    return (made[state](), False) if state in made else (None, state is State.DELETED)


def examples(integration_id: str = ID, suffix: str = "") -> Mapping[type[c.Command], c.Command]:
    """One command of every kind that is right for an integration that `preparation` has readied."""
    on: dict[str, Any] = {"integration_id": integration_id}
    made: tuple[c.Command, ...] = (
        create(integration_id),
        c.EditDetails(**on, texts={"contact": "ops@acme.example"}),
        c.DeleteIntegration(**on),
        c.AddScopes(**on, scopes=("orders:read",)),
        c.RemoveScopes(**on, scopes=("inventory:read",)),
        c.SetAllowlist(**on, entries=("198.51.100.0/24",)),
        c.AddAllowlistEntries(**on, entries=("203.0.113.0/24",)),
        c.RemoveAllowlistEntries(**on, entries=("192.0.2.0/25",)),
        c.EnableAllowlist(**on),
        c.DisableAllowlist(**on),
        c.SetRateLimit(**on, rate_limit_rpm=120, burst=10),
        c.RaiseLimit(**on, rate_limit_rpm=600, until_us=NOW_US + DAY_US),
        c.EndLimitRaise(**on),
        c.SetOnStoreError(**on, on_store_error="local"),
        c.SetShadow(**on, shadow=("allowlist",)),
        c.IssueCredential(**on, credential=credential(f"more{suffix}")),
        c.RotateCredential(
            **on, credential_id=f"live{suffix}", credential=credential(f"next{suffix}"), overlap_us=HOUR_US
        ),
        c.RevokeCredential(**on, credential_id=f"live{suffix}"),
        c.SetCredentialExpiry(**on, credential_id=f"live{suffix}", expires_at_us=NOW_US + DAY_US),
        c.Suspend(**on, reason="key leaked"),
        c.Reactivate(**on, reason="keys replaced"),
        c.GenerateWebhookSecret(**on, secret=secret(f"first{suffix}")),
        c.RotateWebhookSecret(**on, secret=secret(f"second{suffix}"), overlap_us=HOUR_US),
    )
    return {type(command): command for command in made}


def set_up(integration_id: str = ID, suffix: str = "") -> c.CreateIntegration:
    """The command that creates an integration on which most `examples` change something."""
    return create(
        integration_id,
        scopes=("inventory:read", "inventory:write"),
        allowlist=("192.0.2.0/25", "192.0.2.128/25"),
        credentials=(credential(f"live{suffix}"),),
    )


def preparation(
    kind: type[c.Command], integration_id: str = ID, suffix: str = ""
) -> tuple[tuple[Actor, c.Command], ...]:
    """What must be done before the example of *kind* is accepted and changes something."""
    on: dict[str, Any] = {"integration_id": integration_id}
    if kind is c.CreateIntegration:
        return ()
    first = (ANN, set_up(integration_id, suffix))
    if kind is c.EnableAllowlist:
        return first, (ANN, c.DisableAllowlist(**on))
    if kind is c.EndLimitRaise:
        return first, (ANN, examples(integration_id, suffix)[c.RaiseLimit])
    if kind is c.RotateWebhookSecret:
        return first, (ANN, examples(integration_id, suffix)[c.GenerateWebhookSecret])
    if kind is c.Reactivate:
        suspend = c.Suspend(**on, reason="key leaked")
        return first, (BOB, suspend), (ANN, c.IssueCredential(**on, credential=credential(f"new{suffix}")))
    return (first,)


def request(
    command: c.Command,
    actor: Actor = ANN,
    expected_generation: int | None = None,
    **context: str,
) -> ChangeRequest:
    """A request as an API makes it."""
    return ChangeRequest(
        command,
        actor,
        ChangeContext(**{"request_id": "req-1", "source": "127.0.0.1", **context}),
        expected_generation,
    )


def after(steps: tuple[tuple[Actor, c.Command], ...]) -> Integration | None:
    """The record after *steps*, all at the same moment; None = no steps."""
    record: Integration | None = None
    for actor, command in steps:
        record = apply(record, command, actor).record
    return record

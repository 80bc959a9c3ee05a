"""
The states of an integration, and which commands each state accepts: the state machine as a table.

`machine` refuses what the table does not allow; docs/administer/lifecycle.md draws it, and a test compares
the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from sidecar.domain.effective import is_live
from sidecar.domain.integrations import Integration, Status
from sidecar.domain.lifecycle import commands as c


class State(Enum):
    """The state of an integration."""

    ABSENT = "absent"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    REISSUED = "reissued"
    DELETED = "deleted"


DESCRIPTIONS: Mapping[State, str] = {
    State.ABSENT: "No integration ever had this id.",
    State.ACTIVE: "Requests with a live credential are decided by scope, allowlist and quota.",
    State.SUSPENDED: "Every request is refused; no live credential was issued since the suspension.",
    State.REISSUED: "Every request is refused; at least one live credential was issued since the suspension.",
    State.DELETED: "Permanent. The audit entries are kept, and the id is never reused.",
}


def state_of(record: Integration | None, is_deleted: bool, now_us: int) -> State:
    """Return the state of *record*; None = no record, and *is_deleted* = it was deleted."""
    if is_deleted:
        return State.DELETED
    if record is None:
        return State.ABSENT
    if record.status is Status.ACTIVE:
        return State.ACTIVE
    has_new = any(is_live(record, credential, now_us) for credential in record.credentials)
    return State.REISSUED if has_new else State.SUSPENDED


Transitions = Mapping[State, tuple[State, ...]]

_ANYWHERE: Transitions = {state: (state,) for state in (State.ACTIVE, State.SUSPENDED, State.REISSUED)}
_WITH_LIVE_CREDENTIAL: Transitions = {State.ACTIVE: (State.ACTIVE,), State.REISSUED: (State.REISSUED,)}

TRANSITIONS: Mapping[type[c.Command], Transitions] = {
    c.CreateIntegration: {State.ABSENT: (State.ACTIVE,)},
    c.EditDetails: _ANYWHERE,
    c.DeleteIntegration: dict.fromkeys(_ANYWHERE, (State.DELETED,)),
    c.AddScopes: _ANYWHERE,
    c.RemoveScopes: _ANYWHERE,
    c.SetAllowlist: _ANYWHERE,
    c.AddAllowlistEntries: _ANYWHERE,
    c.RemoveAllowlistEntries: _ANYWHERE,
    c.EnableAllowlist: _ANYWHERE,
    c.DisableAllowlist: _ANYWHERE,
    c.SetRateLimit: _ANYWHERE,
    c.RaiseLimit: _ANYWHERE,
    c.EndLimitRaise: _ANYWHERE,
    c.SetOnStoreError: _ANYWHERE,
    c.SetShadow: _ANYWHERE,
    c.IssueCredential: {
        State.ACTIVE: (State.ACTIVE,),
        State.SUSPENDED: (State.REISSUED,),
        State.REISSUED: (State.REISSUED,),
    },
    c.RotateCredential: _WITH_LIVE_CREDENTIAL,
    c.RevokeCredential: {
        State.ACTIVE: (State.ACTIVE,),
        State.SUSPENDED: (State.SUSPENDED,),
        State.REISSUED: (State.REISSUED, State.SUSPENDED),
    },
    c.SetCredentialExpiry: _WITH_LIVE_CREDENTIAL,
    c.Suspend: dict.fromkeys(_ANYWHERE, (State.SUSPENDED,)),
    c.Reactivate: {State.REISSUED: (State.ACTIVE,)},
    c.GenerateWebhookSecret: _ANYWHERE,
    c.RotateWebhookSecret: _ANYWHERE,
}
"""Command by command: the states it is accepted in, and the states that may follow. All else is refused."""

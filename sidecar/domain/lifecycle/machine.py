"""
The lifecycle: applies commands to integrations, and checks that the actor may do so.

Pure: the store passes the record, and writes the result atomically. It calls this in its own transaction, or
commits by comparing the generation that it read, so that concurrent changes cannot bypass a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sidecar.domain.audit import next_time_us
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import allowlists, credentials, limits, shadow, status, webhooks
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import NO_FACTS, CommandContext, Draft, Facts, Outcome
from sidecar.domain.lifecycle.states import TRANSITIONS, State, state_of
from sidecar.domain.records import difference
from sidecar.domain.refusals import Code, RefusedError, raise_for, refusal
from sidecar.domain.roles import Actor
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.texts import REASON_LENGTH_MAX, text_problems

_RULES: Mapping[type[c.Command], Callable[[Integration, Any, CommandContext], Draft]] = {
    c.EditDetails: status.edit,
    c.DeleteIntegration: status.delete,
    c.AddScopes: limits.add_scopes,
    c.RemoveScopes: limits.remove_scopes,
    c.SetAllowlist: allowlists.set_entries,
    c.AddAllowlistEntries: allowlists.add_entries,
    c.RemoveAllowlistEntries: allowlists.remove_entries,
    c.EnableAllowlist: allowlists.enable,
    c.DisableAllowlist: allowlists.disable,
    c.SetRateLimit: limits.set_limit,
    c.RaiseLimit: limits.raise_limit,
    c.EndLimitRaise: limits.end_raise,
    c.SetOnStoreError: limits.set_on_store_error,
    c.SetShadow: shadow.set_rules,
    c.IssueCredential: credentials.issue,
    c.RotateCredential: credentials.rotate,
    c.RevokeCredential: credentials.revoke,
    c.SetCredentialExpiry: credentials.set_expiry,
    c.Suspend: status.suspend,
    c.Reactivate: status.reactivate,
    c.GenerateWebhookSecret: webhooks.generate,
    c.RotateWebhookSecret: webhooks.rotate,
}
_NEED_REASON = (c.Suspend, c.Reactivate)


class Lifecycle:
    """The state machine under one configuration of scope categories."""

    __slots__ = ("catalogue",)

    def __init__(self, catalogue: ScopeCatalogue) -> None:
        """Validate scopes against *catalogue*."""
        self.catalogue = catalogue

    def apply(
        self,
        record: Integration | None,
        command: c.Command,
        actor: Actor,
        now_us: int,
        facts: Facts = NO_FACTS,
    ) -> Outcome:
        """
        Apply *command* of *actor* to *record*.

        Args:
            record: the current record; None = absent or deleted, see `facts.is_deleted`.
            command: the command.
            actor: the author, as stored in the registry.
            now_us: the store's clock.
            facts: other data of the registry.

        Returns:
            The new record and the changes to record; `is_change` False if no change was needed.

        Raises:
            RefusedError: forbidden, not found, conflict or invalid; nothing must be written.
        """
        actor.require(command.action)
        is_required = isinstance(command, _NEED_REASON)
        raise_for(text_problems("reason", command.reason, REASON_LENGTH_MAX, is_required=is_required))
        state = state_of(record, facts.is_deleted, now_us)
        if state not in TRANSITIONS[type(command)]:
            raise _refused_by_state(state, command, actor)
        context = CommandContext(
            actor=actor,
            now_us=now_us,
            at_us=next_time_us(facts.recorded_at_us, now_us),
            generation=record.generation + 1 if record is not None else 1,
            facts=facts,
            catalogue=self.catalogue,
        )
        if record is None:
            assert isinstance(command, c.CreateIntegration)  # TRANSITIONS allows no other command
            return _outcome(None, status.create(command, context), context)
        return _outcome(record, _RULES[type(command)](record, command, context), context)


def _outcome(record: Integration | None, draft: Draft, context: CommandContext) -> Outcome:
    if draft.record == record and not draft.is_deleted:
        return Outcome(draft.record, draft.summary, {}, {}, draft.notices, is_change=False)
    changed = replace(draft.record, generation=context.generation, changed_at_us=context.at_us)
    before, after = difference(record, None if draft.is_deleted else changed)
    return Outcome(
        changed, draft.summary, before, after, draft.notices, draft.claims, draft.sealed, draft.is_deleted
    )


def _refused_by_state(state: State, command: c.Command, actor: Actor) -> RefusedError:
    name = repr(command.integration_id[:80])
    if isinstance(command, c.CreateIntegration):
        if state is State.DELETED:
            return refusal(
                Code.ID_RETIRED,
                "integration_id",
                f"{name} belonged to a deleted integration; ids are never reused, so that audit entries stay"
                " unambiguous and a suspension cannot be undone by creating it again",
                "choose another id",
            )
        return refusal(
            Code.ID_TAKEN,
            "integration_id",
            f"{name} already exists",
            "choose another id, or edit the existing one",
        )
    if state is State.ABSENT:
        return refusal(
            Code.INTEGRATION_UNKNOWN,
            "integration_id",
            f"no integration {name}",
            "list the integrations, or create it",
        )
    if state is State.DELETED:
        return refusal(
            Code.INTEGRATION_DELETED,
            "integration_id",
            f"{name} was deleted",
            "read its audit entries, or create an integration with another id",
        )
    return _refused_by_status(state, command, actor)


def _refused_by_status(state: State, command: c.Command, actor: Actor) -> RefusedError:
    """Return why an existing integration refuses *command*."""
    name = repr(command.integration_id)
    if isinstance(command, c.Reactivate) and state is State.ACTIVE:
        return refusal(Code.NOT_SUSPENDED, "", f"{name} is not suspended", "no change needed: it is active")
    if isinstance(command, c.Reactivate):
        return refusal(
            Code.NO_NEW_CREDENTIAL,
            "",
            f"no live credential of {name} was issued since its latest suspension",
            "issue a new credential first, then reactivate",
        )
    return refusal(
        Code.CREDENTIAL_ENDED,
        "credential_id",
        f"every credential of {name} has expired or was invalidated by the suspension",
        "issue a new credential",
    )

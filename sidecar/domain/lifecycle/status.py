"""Rules of an integration's status: create, edit, delete, suspend, reactivate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sidecar.domain.effective import is_invalidated, is_live
from sidecar.domain.integrations import (
    CREDENTIALS_MAX,
    DETAILS,
    INTEGRATION_ID,
    SUSPENSIONS_MAX,
    Integration,
    Status,
    Suspension,
)
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.allowlists import check_entries
from sidecar.domain.lifecycle.credentials import credential_id_used, new_credential
from sidecar.domain.lifecycle.dual_control import is_single_person, refusal_to_reactivate
from sidecar.domain.lifecycle.limits import fail_policy_of, parse_scopes, quota_of
from sidecar.domain.lifecycle.outcome import CommandContext, Draft, Notice
from sidecar.domain.lifecycle.shadow import parse_rules
from sidecar.domain.refusals import Code, Problem, raise_for, refusal
from sidecar.domain.roles import Actor, is_machine
from sidecar.domain.texts import DETAIL_LENGTH_MAX, NAME_LENGTH_MAX, text_problems


def create(command: c.CreateIntegration, context: CommandContext) -> Draft:
    """Create a record; by default with no scopes, no credentials and the default limit."""
    if not INTEGRATION_ID.fullmatch(command.integration_id):
        raise refusal(
            Code.INVALID_VALUE,
            "integration_id",
            f"integration id {command.integration_id[:80]!a} must be 1-64 of a-z, 0-9, '.', '_' and '-',"
            " starting with a letter or digit",
            "choose another id; it cannot be changed later",
        )
    details = {name: getattr(command, name) for name in DETAILS}
    raise_for(_text_problems({"name": command.name, **details}))
    quota_of(command.rate_limit_rpm, command.burst)
    entries, notices = check_entries("allowlist", command.allowlist)
    record = Integration(
        id=command.integration_id,
        name=command.name,
        scopes=parse_scopes(command.scopes, context.catalogue),
        rate_limit_rpm=command.rate_limit_rpm,
        burst=command.burst,
        ip_allowlist=entries,
        is_allowlist_enabled=bool(entries),
        **details,
        created_at_us=context.at_us,
        on_store_error=fail_policy_of(command.on_store_error),
        shadow=parse_rules(command.shadow),
    )
    return _with_credentials(record, command, context, Draft(record, f"created {command.name!r}", notices))


def _with_credentials(
    record: Integration, command: c.CreateIntegration, context: CommandContext, draft: Draft
) -> Draft:
    if len(command.credentials) > CREDENTIALS_MAX:
        raise refusal(
            Code.TOO_MANY,
            "credentials",
            f"{len(command.credentials)} credentials given; at most {CREDENTIALS_MAX} are allowed",
            "leave out those that are no longer used",
        )
    credentials = tuple(new_credential(fresh, context) for fresh in command.credentials)
    claims = tuple(credential.id for credential in credentials)
    for credential_id in claims:
        if claims.count(credential_id) > 1:
            raise credential_id_used(credential_id)
    return replace(draft, record=replace(record, credentials=credentials), claims=claims)


def edit(record: Integration, command: c.EditDetails, context: CommandContext) -> Draft:
    """Change the details that are given."""
    raise_for(_text_problems(command.texts))
    changed: dict[str, Any] = {
        name: text for name, text in command.texts.items() if text != getattr(record, name)
    }
    return Draft(replace(record, **changed), f"changed {', '.join(changed) or 'nothing'}")


def delete(record: Integration, command: c.DeleteIntegration, context: CommandContext) -> Draft:
    """Delete the integration; the remaining record has no credentials and no secrets."""
    ended = replace(record, credentials=(), webhook_secrets=(), limit_raise=None)
    return Draft(ended, f"deleted {record.name!r}", is_deleted=True)


def suspend(record: Integration, command: c.Suspend, context: CommandContext) -> Draft:
    """Block it and invalidate every credential; the suspender is recorded until a reactivation."""
    others = tuple(suspension for suspension in record.suspensions if suspension.by != context.actor.id)
    if len(others) >= SUSPENSIONS_MAX:
        raise refusal(
            Code.TOO_MANY,
            "",
            f"{record.id!r} is already suspended by {SUSPENSIONS_MAX} administrators, which is the maximum",
            "no change needed: every request is refused; revoke credentials that were issued since",
        )
    earlier = next(
        (suspension for suspension in record.suspensions if suspension.by == context.actor.id), None
    )
    since_us = earlier.since_us if earlier is not None else context.at_us
    suspension = Suspension(context.actor.id, context.at_us, command.reason, context.generation, since_us)
    changed = replace(
        record,
        status=Status.SUSPENDED,
        suspensions=(*others, suspension),
        suspended_generation=context.generation,
    )
    ended = sum(is_live(record, credential, context.now_us) for credential in record.credentials)
    what = "1 live credential was" if ended == 1 else f"{ended} live credentials were"
    return Draft(changed, f"suspended; {what} invalidated", _machine_notices(context.actor))


def _machine_notices(actor: Actor) -> tuple[Notice, ...]:
    """Return a notice if the suspension is made on the machine."""
    if not is_machine(actor.id):
        return ()
    return (
        Notice(
            "single_person",
            "",
            "the suspension was made without an administrator's token, so its author is not proven: the"
            " reactivation will be marked single_person",
        ),
    )


def reactivate(record: Integration, command: c.Reactivate, context: CommandContext) -> Draft:
    """
    Reactivate it, with the credentials that were issued since the latest suspension; needs a second person.

    If one person may have done both, the record keeps the time until the next reactivation.
    """
    actor, suspensions = context.actor, record.suspensions
    refused = refusal_to_reactivate(actor, suspensions, record.id)
    if refused is not None:
        raise refused
    is_alone = is_single_person(actor, suspensions)
    kept = tuple(credential for credential in record.credentials if not is_invalidated(record, credential))
    changed = replace(
        record,
        status=Status.ACTIVE,
        credentials=kept,
        suspensions=(),
        single_person_at_us=context.at_us if is_alone else 0,
    )
    summary = f"reactivated; credentials: {', '.join(credential.id for credential in kept)}"
    if is_alone:
        return Draft(changed, f"{summary}; single_person", _single_person_notices(actor))
    return Draft(changed, summary)


def _single_person_notices(actor: Actor) -> tuple[Notice, ...]:
    """Return the notice that a second person is not proven."""
    return (
        Notice(
            "single_person",
            "",
            f"the suspender and {actor.id!r} may be the same person; the audit log and the review record"
            " this. Have a second person confirm the reactivation",
        ),
    )


def _text_problems(texts: Mapping[str, str]) -> list[Problem]:
    return [
        problem
        for name, text in texts.items()
        for problem in text_problems(
            name, text, DETAIL_LENGTH_MAX if name in DETAILS else NAME_LENGTH_MAX, is_required=name == "name"
        )
    ]

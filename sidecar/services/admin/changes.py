"""The endpoints that change one integration."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NotRequired

from starlette.responses import Response

from sidecar.domain.accounts import Administrator
from sidecar.domain.changes import ChangeRequest, Committed, Position
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle.commands import Command, CreateIntegration, Suspend
from sidecar.domain.lifecycle.outcome import Notice
from sidecar.domain.refusals import RefusedError
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer, etag
from sidecar.services.admin.call import Call
from sidecar.services.admin.change_table import ROWS, ChangeRow, CommandInputs, SecretKind, one_end
from sidecar.services.admin.confirmation import ConfirmationView, confirm, put_in_force
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.new_secrets import (
    generate_credential,
    generate_webhook_secret,
    placeholder_credential,
    placeholder_secret,
)
from sidecar.services.admin.notices import accounts_now, lock_notices
from sidecar.services.admin.problems import FIELD_NAMES, ApiCode, ProblemError, problem_error, refused
from sidecar.services.admin.views import (
    DurabilityView,
    IntegrationView,
    NoticeView,
    durability_view,
    integration_view,
    notice_view,
)

_STRONG_TAG = re.compile(r'"(0|[1-9][0-9]{0,15})"')
_CREATE_NAMES = {**FIELD_NAMES, "integration_id": "id", "expires_at_us": "credential_expires_at"}


class ChangeView(DurabilityView):
    """
    The result of a change.

    `position` null = no change was needed, or it was a dry run. `is_in_force` false = the change is made, but
    this sidecar does not apply it yet. `api_key` and `secret` are in the first answer only: a repeat with the
    same idempotency key has null.
    """

    integration: IntegrationView
    notices: list[NoticeView]
    is_change: bool
    is_deleted: bool
    is_dry_run: bool
    is_in_force: bool
    summary: str
    position: str | None
    took_ms: int
    confirmation: NotRequired[ConfirmationView]
    api_key: NotRequired[str | None]
    credential_id: NotRequired[str | None]
    secret: NotRequired[str | None]
    secret_id: NotRequired[str | None]


@dataclass(frozen=True, slots=True)
class _Made:
    """
    A command with its secret and the secret's kind; '' = it is a dry run.

    `accounts` is set for a suspension, to check whether anybody could reactivate it.
    """

    command: Command
    generates: SecretKind = SecretKind.NOTHING
    secret: str = field(default="", repr=False)
    accounts: tuple[Administrator, ...] | None = None


async def make_change(row: ChangeRow, context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Make the change that *row* describes, or try it."""
    given = _given(row, context, call, query, body)
    call.note(action=row.action_name, subject=f"integration:{given.integration_id[:64]}")
    expected_generation = expected_by(call.header("If-Match"))
    try:
        made = _made(row, given, context, is_trial=query.dry_run)
        if row.command is Suspend:
            made = replace(made, accounts=await accounts_now(context.registry))
        if query.dry_run:
            return await _try(context, call, made, expected_generation)
        request = ChangeRequest(made.command, call.actor, call.change_context(), expected_generation)
        if query.wait:
            call.take_long()
        committed = await context.registry.apply(request)
    except RefusedError as error:
        names = _CREATE_NAMES if row.command is CreateIntegration else FIELD_NAMES
        raise ProblemError(refused(error, names)) from None
    return await _committed(row, context, call, made, committed, query.wait)


async def _try(context: AdminContext, call: Call, made: _Made, expected_generation: int | None) -> Response:
    # Without the idempotency key: a dry run must not use it up.
    change_context = replace(call.change_context(), idempotency_key="", fingerprint="")
    outcome = await context.registry.preview(
        ChangeRequest(made.command, call.actor, change_context, expected_generation)
    )
    call.note(is_dry_run=True)
    view: ChangeView = {
        **_view(context, outcome.record, outcome.notices, made),
        "is_change": outcome.is_change,
        "is_deleted": outcome.is_deleted,
        "is_dry_run": True,
        "summary": outcome.summary,
        "took_ms": call.took_ms,
    }
    _show_secret(view, outcome.record, made, is_replay=False)
    return answer(view)


async def _committed(
    row: ChangeRow, context: AdminContext, call: Call, made: _Made, committed: Committed, wait_s: int
) -> Response:
    positions = (committed.position,) if committed.position is not None else ()
    is_in_force = await put_in_force(context, positions)
    view: ChangeView = {
        **_view(context, committed.record, committed.notices, made),
        "is_change": committed.entry is not None,
        "is_deleted": committed.is_deleted,
        "is_in_force": is_in_force,
        **durability_view(context.registry, committed.is_durable),
        "summary": committed.entry.summary if committed.entry is not None else "no change needed",
        "position": position_text(committed.position),
    }
    _show_secret(view, committed.record, made, committed.is_replay)
    if wait_s:
        view["confirmation"] = await confirm(context, call, positions, wait_s)
    view["took_ms"] = call.took_ms
    call.note(
        position=view["position"],
        generation=committed.generation,
        is_replay=committed.is_replay,
        is_in_force=is_in_force,
        is_durable=committed.is_durable,
    )
    return answer(view, row.status, _headers(row, committed))


def _headers(row: ChangeRow, committed: Committed) -> dict[str, str]:
    headers = {} if committed.is_deleted else etag(committed.generation)
    if committed.is_replay:
        headers["Idempotency-Replayed"] = "true"
    if row.command is CreateIntegration:
        headers["Location"] = f"/v1/integrations/{committed.record.id}"
    return headers


def _view(context: AdminContext, record: Integration, notices: tuple[Notice, ...], made: _Made) -> ChangeView:
    now_us = context.clock_us()
    all_notices = (*notices, *lock_notices(made.accounts, record, now_us))
    return {
        "integration": integration_view(record, now_us),
        "notices": [notice_view(notice) for notice in all_notices],
        "is_change": False,
        "is_deleted": False,
        "is_dry_run": False,
        "is_in_force": False,
        "is_durable": False,
        "lacks_replicas": False,
        "summary": "",
        "position": None,
        "took_ms": 0,
    }


def _show_secret(view: ChangeView, record: Integration, made: _Made, is_replay: bool) -> None:
    """Add the secret to *view*, with the id of the latest credential or webhook secret."""
    secret = made.secret if made.secret and not is_replay else None
    if made.generates is SecretKind.API_KEY:
        view["api_key"] = secret
        view["credential_id"] = record.credentials[-1].id if made.secret else None
    elif made.generates is SecretKind.WEBHOOK_SECRET:
        view["secret"] = secret
        view["secret_id"] = record.webhook_secrets[-1].id if made.secret else None


def _given(row: ChangeRow, context: AdminContext, call: Call, query: Any, body: Any) -> CommandInputs:
    is_create = row.command is CreateIntegration
    return CommandInputs(
        integration_id=body.id if is_create else call.path("integration_id"),
        body=body,
        reason=body.reason if body is not None else query.reason,
        now_us=context.clock_us(),
        credential_id=call.path("credential_id") if row.names_credential else "",
    )


def _made(row: ChangeRow, given: CommandInputs, context: AdminContext, *, is_trial: bool) -> _Made:
    """Build the command, with a new secret if it needs one; a dry run generates none."""
    body = given.body
    if row.generates is SecretKind.WEBHOOK_SECRET:
        if context.sealer is None:
            raise _webhook_secrets_off()
        if is_trial:
            return _Made(row.build(replace(given, secret=placeholder_secret())), row.generates)
        generated = generate_webhook_secret(context.sealer)
        return _Made(row.build(replace(given, secret=generated.sealed)), row.generates, generated.secret)
    if row.generates is SecretKind.NOTHING or (
        row.command is CreateIntegration and not body.issue_credential
    ):
        return _Made(row.build(given))
    expires_at_us = _expiry(row, given)
    if is_trial:
        return _Made(
            row.build(replace(given, credentials=(placeholder_credential(expires_at_us),))), row.generates
        )
    key = generate_credential(expires_at_us)
    return _Made(row.build(replace(given, credentials=(key.public,))), row.generates, key.api_key)


def _expiry(row: ChangeRow, given: CommandInputs) -> int | None:
    body = given.body
    if row.command is CreateIntegration:
        at_us: int | None = body.credential_expires_at
        return at_us
    in_s = getattr(body, "expires_in", None)
    return one_end("expires_at", body.expires_at, "expires_in", in_s, given.now_us)


def _webhook_secrets_off() -> ProblemError:
    return problem_error(
        ApiCode.WEBHOOK_SECRETS_OFF,
        "this sidecar has no key to encrypt webhook secrets",
        "set 'webhook_secret_key_file' in the configuration, and restart the sidecar",
    )


def expected_by(tag: str | None) -> int | None:
    """
    Return the generation in If-Match (RFC 9110 13.1.1); None = any.

    Raises:
        ProblemError: a weak or malformed tag, or several.
    """
    if tag is None or tag.strip() == "*":
        return None
    match = _STRONG_TAG.fullmatch(tag.strip())
    if match is None:
        raise problem_error(
            ApiCode.INVALID_HEADER,
            "If-Match is not the ETag of an integration",
            'send the ETag of the integration, such as If-Match: "7"',
            "If-Match",
        )
    return int(match[1])


def position_text(position: Position | None) -> str | None:
    """Format a position: '<partition>.<sequence>'."""
    return f"{position.partition}.{position.sequence}" if position is not None else None


def _endpoint(row: ChangeRow) -> Endpoint:
    return Endpoint(
        name=row.action_name.replace(".", "_"),
        method=row.method,
        path=row.path,
        tag=row.tag,
        summary=row.summary,
        description=" ".join((row.command.__doc__ or "").split()),
        handle=partial(make_change, row),
        actions=frozenset({row.command.action}),
        query=b.DeleteQuery if row.body is None else b.ChangeQuery,
        body=row.body,
        answer=ChangeView,
        status=row.status,
        has_generation=True,
        examples=row.examples,
    )


ENDPOINTS = tuple(_endpoint(row) for row in ROWS)

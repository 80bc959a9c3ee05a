"""The endpoint for the access review: the access of each integration, and what needs a decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.activity import remove_scope
from sidecar.domain.effective import is_live
from sidecar.domain.enforcement import rule_names
from sidecar.domain.integrations import Credential, Integration, Status
from sidecar.domain.roles import Action
from sidecar.domain.scopes import ScopeCatalogue, Sensitivity
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import list_answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.decision_log import QUERY_TIMEOUT_S
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.problems import ProblemError
from sidecar.services.admin.times import format_optional_time, format_time
from sidecar.services.admin.views import (
    CredentialState,
    RecordView,
    credential_state,
    credential_views,
    record_view,
)
from sidecar.stores.decisions.activity import read_scope_uses
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.registry.protocol import LastUse, ListQuery

DAY_US = 24 * 3_600 * 1_000_000
OLD_DAYS = 90
"""An API key that is older, or unused for longer, must be rotated or revoked."""

FlagWord = Literal[
    "suspended",
    "single_person",
    "in_shadow",
    "allowlist_off",
    "no_live_credential",
    "sensitive_scope",
    "credential_expired",
    "credential_invalidated",
    "credential_never_expires",
    "credential_never_used",
    "credential_old",
    "credential_unused",
    "scope_unused",
]


class ReviewedScopeView(TypedDict):
    """
    A scope, the sensitivity of its data, and its last use.

    `sensitivity` null = its category is no longer configured. `last_used_at` null = not used in the last 90
    days, or unknown: see `scope_uses_since` of the page.
    """

    scope: str
    sensitivity: str | None
    last_used_at: str | None


class ReviewedCredentialView(TypedDict):
    """An API key, its age and its last use."""

    id: str
    state: CredentialState
    issued_at: str | None
    age_days: int | None
    expires_at: str | None
    last_used_at: str | None
    last_used_address: str | None
    unused_days: int | None


class FlagView(TypedDict):
    """Something that needs a decision; `credential_id` null = about the integration as a whole."""

    code: FlagWord
    credential_id: str | None
    message: str


class ReviewView(RecordView):
    """The review of one integration."""

    suspended_since: str | None
    scopes: list[ReviewedScopeView]
    credentials: list[ReviewedCredentialView]
    flags: list[FlagView]


class ReviewPageView(TypedDict):
    """
    One page of the review, as of `as_of`.

    The uses of scopes are known from `scope_uses_since` on, at most 90 days ago; null = not known, because
    there is no decision log or because of `scope_uses_problem`.
    """

    items: list[ReviewView]
    next_after: str | None
    as_of: str
    scope_uses_since: str | None
    scope_uses_problem: str | None


class ScopeUses(NamedTuple):
    """When each integration last used each scope, known from `since_us` on; None = not known."""

    since_us: int | None = None
    at_us: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    problem: str | None = None


async def review(context: AdminContext, call: Call, query: b.ReviewQuery, body: Any) -> Response:
    """Answer with one page of the review."""
    status = Status(query.status) if query.status is not None else None
    page = await context.registry.list(ListQuery(query.search, status, query.after, query.limit))
    now_us = context.clock_us()
    scope_uses = await _scope_uses(context, [record.id for record in page.records], now_us)
    items = []
    for record in page.records:
        uses = await context.registry.last_uses(record.id)
        items.append(review_view(record, uses, context.catalogue, now_us, scope_uses))
    rest: dict[str, object] = {
        "next_after": page.next_after or None,
        "as_of": format_time(now_us),
        "scope_uses_since": format_optional_time(scope_uses.since_us),
        "scope_uses_problem": scope_uses.problem,
    }
    return await list_answer(items, rest)


async def _scope_uses(context: AdminContext, integrations: Sequence[str], now_us: int) -> ScopeUses:
    """The uses in the decision log; without a log, or if it cannot be read, the review has none."""
    if context.decision_log is None:
        return ScopeUses()
    since_us = now_us - OLD_DAYS * DAY_US

    def read(reader: DecisionReader) -> ScopeUses:
        begins_us = reader.begins_us()
        uses = read_scope_uses(reader, integrations, since_us, now_us, QUERY_TIMEOUT_S)
        return ScopeUses(max(since_us, now_us if begins_us is None else begins_us), uses)

    try:
        return await context.decision_log.run(read)
    except ProblemError as error:
        return ScopeUses(problem=str(error))


def review_view(
    record: Integration,
    uses: Mapping[str, LastUse],
    catalogue: ScopeCatalogue,
    now_us: int,
    scope_uses: ScopeUses,
) -> ReviewView:
    """Return the review of *record*."""
    last_uses = scope_uses.at_us.get(record.id, {})
    since_us = min((suspension.since_us for suspension in record.suspensions), default=None)
    return {
        **record_view(record, now_us),
        "suspended_since": format_time(since_us) if since_us is not None else None,
        "scopes": _scopes(record, catalogue, last_uses),
        "credentials": _credentials(record, uses, now_us),
        "flags": [
            *_flags(record, catalogue, now_us),
            *_unused_scope_flags(record, scope_uses, now_us),
            *_credential_flags(record, uses, now_us),
        ],
    }


def _scopes(
    record: Integration, catalogue: ScopeCatalogue, last_uses: Mapping[str, int]
) -> list[ReviewedScopeView]:
    views: list[ReviewedScopeView] = []
    for scope in sorted(record.scopes):
        category = catalogue.categories.get(scope.category)
        sensitivity = category.sensitivity.value if category is not None else None
        last_used_at = format_optional_time(last_uses.get(str(scope)))
        views.append({"scope": str(scope), "sensitivity": sensitivity, "last_used_at": last_used_at})
    return views


def _credentials(
    record: Integration, uses: Mapping[str, LastUse], now_us: int
) -> list[ReviewedCredentialView]:
    views: list[ReviewedCredentialView] = []
    for credential, view in zip(record.credentials, credential_views(record, now_us, uses), strict=True):
        use = uses.get(credential.id)
        views.append(
            {
                "id": credential.id,
                "state": view["state"],
                "issued_at": view["issued_at"],
                "age_days": _days(credential.issued_at_us, now_us) if credential.issued_at_us else None,
                "expires_at": view["expires_at"],
                "last_used_at": view["last_used_at"],
                "last_used_address": view["last_used_address"],
                "unused_days": _days(use.at_us, now_us) if use is not None else None,
            }
        )
    return views


def _flags(record: Integration, catalogue: ScopeCatalogue, now_us: int) -> Iterator[FlagView]:
    """Yield the flags of the integration as a whole."""
    if record.status is Status.SUSPENDED:
        yield _flag("suspended", None, "suspended: reactivate it, or delete it if it is no longer needed")
    if record.single_person_at_us:
        at = format_time(record.single_person_at_us)
        yield _flag(
            "single_person",
            None,
            f"reactivated at {at} by an administrator who may also have suspended it: have a second person"
            " check it, then suspend and reactivate it by two administrators",
        )
    if record.shadow:
        rules = ", ".join(rule_names(record.shadow))
        yield _flag("in_shadow", None, f"in shadow, which refuses nothing: {rules}; enforce it")
    if not record.is_allowlist_enabled:
        yield _flag("allowlist_off", None, "every address may call: turn the allowlist on")
    if not any(is_live(record, credential, now_us) for credential in record.credentials):
        yield _flag("no_live_credential", None, "has no live API key: issue one, or delete the integration")
    for scope in sorted(record.scopes):
        category = catalogue.categories.get(scope.category)
        if category is not None and category.sensitivity is not Sensitivity.OPERATIONAL:
            kind = category.sensitivity.value
            yield _flag("sensitive_scope", None, f"{scope} opens {kind} data: confirm that it is needed")


def _unused_scope_flags(record: Integration, scope_uses: ScopeUses, now_us: int) -> Iterator[FlagView]:
    """Yield the scopes without a use in `OLD_DAYS`, for which log and integration must be old enough."""
    begins_us = max(record.created_at_us, now_us if scope_uses.since_us is None else scope_uses.since_us)
    if now_us - begins_us < OLD_DAYS * DAY_US:
        return
    last_uses = scope_uses.at_us.get(record.id, {})
    for scope in map(str, sorted(record.scopes)):
        if scope not in last_uses:
            command = remove_scope(record.id, scope)
            yield _flag("scope_unused", None, f"{scope} was not used for {OLD_DAYS} days: {command}")


def _credential_flags(record: Integration, uses: Mapping[str, LastUse], now_us: int) -> Iterator[FlagView]:
    for credential in record.credentials:
        state = credential_state(record, credential, now_us)
        if state == "expired":
            yield _flag("credential_expired", credential, "has expired: revoke it")
        elif state == "invalidated":
            yield _flag("credential_invalidated", credential, "was invalidated by a suspension: revoke it")
        else:
            yield from _live_credential_flags(credential, uses.get(credential.id), now_us)


def _live_credential_flags(credential: Credential, use: LastUse | None, now_us: int) -> Iterator[FlagView]:
    if credential.expires_at_us is None:
        yield _flag("credential_never_expires", credential, "has no expiry date; set one")
    if credential.issued_at_us and _days(credential.issued_at_us, now_us) > OLD_DAYS:
        yield _flag("credential_old", credential, f"is older than {OLD_DAYS} days: rotate it")
    if use is None:
        yield _flag("credential_never_used", credential, "was never used: revoke it if it is not needed")
    elif _days(use.at_us, now_us) > OLD_DAYS:
        yield _flag("credential_unused", credential, f"was not used for {OLD_DAYS} days: revoke it")


def _flag(code: FlagWord, credential: Credential | None, message: str) -> FlagView:
    if credential is None:
        return {"code": code, "credential_id": None, "message": message}
    return {"code": code, "credential_id": credential.id, "message": f"{credential.id} {message}"}


def _days(since_us: int, now_us: int) -> int:
    return max(0, now_us - since_us) // DAY_US


ENDPOINTS = (
    Endpoint(
        "review", "GET", "/v1/review", "review", "Review integrations",
        "For the access review: scopes with sensitivity and last use, allowlist, limit, API keys with age and"
        " last use, and flags for what needs a decision.",
        review, frozenset({Action.READ_AUDIT}), b.ReviewQuery, answer=ReviewPageView,
    ),
)  # fmt: skip

"""
Bodies and query strings of the API, as strict pydantic models that reject unknown fields.

They check types. The domain checks values, so that API, command line and files get the same errors; bounds in
`json_schema_extra` are for readers of the OpenAPI document only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from sidecar.domain.administrators import ADMINISTRATOR_ID
from sidecar.domain.api_keys import CREDENTIAL_ID, DIGEST
from sidecar.domain.bucket import BURST_MAX, LIMIT_RPM_MAX
from sidecar.domain.durations import FORM, format_duration, parse_duration
from sidecar.domain.enforcement import RULE_NAMES
from sidecar.domain.integrations import (
    ALLOWLIST_ENTRIES_MAX,
    CREDENTIALS_MAX,
    DEFAULT_LIMIT_RPM,
    DETAILS,
    INTEGRATION_ID,
    SEARCHED,
)
from sidecar.domain.lifecycle.limits import SCOPES_MAX
from sidecar.domain.texts import DETAIL_LENGTH_MAX, NAME_LENGTH_MAX, REASON_LENGTH_MAX
from sidecar.services.admin.times import parse_time
from sidecar.services.admin.views import PolicyWord, RoleWord
from sidecar.stores.registry.protocol import PAGE_MAX

WAIT_S_MAX = 60
TOKEN_DAYS = 90
COUNT_MAX = 2**31 - 1
ANCHORS_MAX = 100
REVIEW_PAGE_MAX = 100
DAY_S = 86_400


def whole_pattern(pattern: str) -> str:
    """Return *pattern* anchored at both ends, as JSON Schema needs it."""
    return f"^{pattern}$"


def _moment(value: object) -> object:
    return parse_time(value) if isinstance(value, str) else _not_text(value)


def _not_text(value: object) -> object:
    raise ValueError('must be a time with an offset, such as "2026-12-01T00:00:00Z"')


def _duration(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"must be a duration: {FORM}")
    return parse_duration(value)


def _duration_like(example: str, default: int | None = None) -> tuple[BeforeValidator, WithJsonSchema]:
    """Annotations that read seconds from a duration; the schema shows *example* and *default* as text."""
    schema: dict[str, Any] = {"type": "string", "examples": [example]}
    if default is not None:
        schema["default"] = format_duration(default)
    return BeforeValidator(_duration), WithJsonSchema(schema)


def _number(value: object) -> object:
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) <= 16):
        raise ValueError("must be an integer")
    return int(text)


def _switch(value: object) -> object:
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


def _documented(**schema: Any) -> Any:
    """A field that the domain checks; *schema* documents the bounds."""
    return Field(json_schema_extra=schema)


Moment = Annotated[
    int,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-12-01T00:00:00Z"]}),
]
Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]
IntegrationId = Annotated[str, _documented(pattern=whole_pattern(INTEGRATION_ID.pattern))]
AdministratorId = Annotated[str, _documented(pattern=whole_pattern(ADMINISTRATOR_ID.pattern))]
CredentialId = Annotated[str, _documented(pattern=whole_pattern(CREDENTIAL_ID.pattern))]
Name = Annotated[str, _documented(minLength=1, maxLength=NAME_LENGTH_MAX)]
Detail = Annotated[str, _documented(maxLength=DETAIL_LENGTH_MAX)]
Reason = Annotated[str, _documented(maxLength=REASON_LENGTH_MAX)]
Scopes = Annotated[list[str], _documented(maxItems=SCOPES_MAX, examples=[["orders:read"]])]
Entries = Annotated[list[str], _documented(maxItems=ALLOWLIST_ENTRIES_MAX, examples=[["192.0.2.0/24"]])]
Shadow = Annotated[list[str], _documented(items={"type": "string", "enum": list(RULE_NAMES)})]
LimitRpm = Annotated[Count, _documented(minimum=1, maximum=LIMIT_RPM_MAX)]
Burst = Annotated[Count, _documented(minimum=1, maximum=BURST_MAX)]
OverlapTime: TypeAlias = Annotated[int, *_duration_like("24h", default=0)]
RaiseTime: TypeAlias = Annotated[int, *_duration_like("2h")]
Lifetime: TypeAlias = Annotated[int, *_duration_like("90d")]
TokenLifetime: TypeAlias = Annotated[int, *_duration_like("90d", default=TOKEN_DAYS * DAY_S)]
_DECIMAL = BeforeValidator(_number)
"""Must come last, so that the bounds before it stay in the schema."""
Switch = Annotated[bool, BeforeValidator(_switch)]
VerdictWord = Literal["ALLOW", "DENY_403", "DENY_429"]


class Body(BaseModel):
    """The optional field of every body: the reason, for the audit log."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    reason: Reason = ""


_Model = TypeVar("_Model", bound=Body)


def _with_details(kind: object, default: str | None) -> Callable[[type[_Model]], type[_Model]]:
    """Return a decorator that adds `DETAILS`, of the type *kind*, to a model."""

    def extended(model: type[_Model]) -> type[_Model]:
        details: Any = dict.fromkeys(DETAILS, (kind, default))
        return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **details)

    return extended


@_with_details(Detail, "")
class IntegrationTerms(Body):
    """A new integration. Defaults: no scopes, no API key, the allowlist off."""

    name: Name
    scopes: Scopes = []
    rate_limit_rpm: LimitRpm = DEFAULT_LIMIT_RPM
    burst: Burst | None = None
    allowlist: Entries = []
    on_store_error: PolicyWord | None = None
    shadow: Shadow = []


class NewIntegration(IntegrationTerms):
    """A new integration, optionally with its first API key."""

    id: IntegrationId
    issue_credential: bool = False
    credential_expires_at: Moment | None = None


@_with_details(Detail | None, None)
class Details(Body):
    """Details to change; omitted fields stay as they are, '' clears a field."""

    name: Name | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The fields to change."""
        return {name: text for name in ("name", *DETAILS) if (text := getattr(self, name)) is not None}


class ScopeNames(Body):
    """Scopes, each `category:read` or `category:write`."""

    scopes: Scopes


class AllowlistSwitch(Body):
    """Whether the allowlist is in shadow: true = counted, but refuses nothing; omitted = as it is."""

    in_shadow: bool | None = None


class ShadowRules(Body):
    """The rules in shadow, which are counted but refuse nothing; an empty list enforces every rule."""

    shadow: Shadow


class AllowlistEntries(Body):
    """CIDR blocks or single addresses."""

    entries: Entries


class ReasonOnly(Body):
    """The optional reason."""


class ReasonRequired(Body):
    """The required reason; the domain rejects an empty one."""

    model_config = ConfigDict(json_schema_extra={"required": ["reason"]})


class Limit(Body):
    """A limit; without `burst`, the burst equals the limit."""

    rate_limit_rpm: LimitRpm
    burst: Burst | None = None


class PermanentLimit(Limit):
    """The permanent limit. `in_shadow` true = counted, but refuses nothing; omitted = as it is."""

    in_shadow: bool | None = None


class TemporaryLimit(Limit):
    """A temporary limit, with either `until` or `duration`."""

    until: Moment | None = None
    duration: RaiseTime | None = None


class CredentialTerms(Body):
    """When the new API key expires: at a time, after a duration, or never."""

    expires_at: Moment | None = None
    expires_in: Lifetime | None = None


class RotationTerms(Body):
    """How long the old API key keeps working, and when the new one expires."""

    overlap: OverlapTime = 0
    expires_at: Moment | None = None


class Expiry(Body):
    """When the API key expires; null = never."""

    expires_at: Moment | None


class Overlap(Body):
    """How long the old secret keeps signing."""

    overlap: OverlapTime = 0


class StorePolicy(Body):
    """How to answer while the store of buckets is unavailable; null = as the sidecar is configured."""

    policy: PolicyWord | None


class NewAdministrator(Body):
    """A new account, with its first token."""

    id: AdministratorId
    name: Name
    role: RoleWord
    token_expires_in: TokenLifetime = TOKEN_DAYS * DAY_S


class RoleChange(Body):
    """The new role of the account."""

    role: RoleWord


class TokenTerms(Body):
    """When the new token expires."""

    expires_in: TokenLifetime = TOKEN_DAYS * DAY_S


class GivenCredential(BaseModel):
    """The public part of an API key that the caller generated: see 'sidecar keys new'."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: CredentialId
    digest: Annotated[str, _documented(pattern=whole_pattern(DIGEST.pattern))]
    expires_at: Moment | None = None


GivenCredentials = Annotated[list[GivenCredential], _documented(maxItems=CREDENTIALS_MAX)]


class Query(BaseModel):
    """A query string without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChangeQuery(Query):
    """How to make a change: as a dry run, or waiting for confirmation."""

    dry_run: Annotated[
        Switch, Field(description="Change nothing; answer as if the change had been made.")
    ] = False
    wait: Annotated[
        int,
        Field(
            ge=0,
            le=WAIT_S_MAX,
            description="Wait at most this long for every live sidecar to confirm; at most 60s.",
        ),
        BeforeValidator(_duration),
        WithJsonSchema({"type": "string", "examples": ["10s"], "default": "0s"}),
    ] = 0


class DeleteQuery(ChangeQuery):
    """As `ChangeQuery`, with the reason, because a DELETE has no body."""

    reason: Reason = ""


class ReasonQuery(Query):
    """The reason, because a DELETE has no body."""

    reason: Reason = ""


class PageQuery(Query):
    """The page of a list."""

    limit: Annotated[
        int, Field(ge=1, le=PAGE_MAX, description="Maximum number of items on a page."), _DECIMAL
    ] = 100
    after: Annotated[str, Field(description="`next_after` of the previous page.")] = ""


class ListQuery(PageQuery):
    """Filters for integrations."""

    search: Annotated[
        str, Field(max_length=DETAIL_LENGTH_MAX, description=f"Text to search in {SEARCHED}.")
    ] = ""
    status: Literal["active", "suspended"] | None = None


class ReviewQuery(ListQuery):
    """Filters for the review; its pages are smaller, because the last uses are looked up."""

    limit: Annotated[
        int, Field(ge=1, le=REVIEW_PAGE_MAX, description="Maximum number of items on a page."), _DECIMAL
    ] = 50


class AuditListQuery(PageQuery):
    """Filters for audit entries."""

    chain: (
        Annotated[int, Field(ge=0, le=COUNT_MAX, description="Only this chain, of several."), _DECIMAL] | None
    ) = None
    subject: Annotated[str, Field(examples=["integration:acme"])] = ""
    integration: Annotated[str, Field(description="Short for `subject=integration:<id>`.")] = ""
    actor: str = ""
    action: Annotated[str, Field(examples=["integration.suspend"])] = ""
    since: Moment | None = None
    until: Moment | None = None
    newest_first: Switch = False


class DecisionFilterQuery(Query):
    """Filters for decisions, which apply together."""

    since: Annotated[Moment | None, Field(description="Decisions from this time on.")] = None
    until: Annotated[Moment | None, Field(description="Decisions before this time.")] = None
    integration: str | None = None
    credential: Annotated[str | None, Field(description="The id of an API key.")] = None
    verdict: VerdictWord | None = None
    reason: Annotated[str | None, Field(examples=["rate_limited"])] = None
    would_deny: Annotated[
        str | None,
        Field(description="The reason that shadow mode did not enforce.", examples=["ip_not_allowed"]),
    ] = None
    address: Annotated[
        str | None,
        Field(description="The client's address, or a block of addresses.", examples=["192.0.2.0/24"]),
    ] = None
    scope: Annotated[str | None, Field(examples=["orders:read"])] = None
    method: Annotated[str | None, Field(examples=["GET"])] = None
    path_prefix: Annotated[str | None, Field(description="The start of the path.")] = None
    request_id: Annotated[str | None, Field(description="The proxy's `x-request-id`.")] = None


class DecisionListQuery(DecisionFilterQuery, PageQuery):
    """Filters for decisions, and the page."""

    recorded_after: Annotated[
        str, Field(description="Only decisions that were recorded since the answer with this `recorded`.")
    ] = ""


class DecisionExportQuery(DecisionFilterQuery):
    """Filters for decisions, and the format of the file."""

    format: Annotated[
        Literal["ndjson", "csv", "parquet"] | None,
        Field(description="Wins over the header `Accept`; without both it is ndjson."),
    ] = None


class DecisionQuery(Query):
    """The span of time in which a decision is looked for."""

    since: Moment | None = None
    until: Moment | None = None


class RefusedAddressQuery(Query):
    """The start of the span of time."""

    since: Annotated[Moment | None, Field(description="Refusals since this time; default: 30 days ago.")] = (
        None
    )


class DecisionErasure(Body):
    """The rows to erase: of one integration, or of one block of addresses."""

    integration: IntegrationId | None = None
    address: Annotated[str, _documented(examples=["192.0.2.7"])] | None = None


class DecisionErasureQuery(Query):
    """How to erase."""

    dry_run: Annotated[Switch, Field(description="Erase nothing; answer with the number of rows.")] = False


class ActivityQuery(Query):
    """The window of an integration's activity, and its working hours."""

    since: Annotated[
        int,
        Field(
            ge=3_600,
            le=31 * DAY_S,
            description="How long before `until` the window begins, 1h to 31d; it begins at a full hour.",
        ),
        *_duration_like("24h", default=DAY_S),
    ] = DAY_S
    until: Annotated[Moment | None, Field(description="The end of the window; default: now.")] = None
    hours: Annotated[
        str,
        Field(
            max_length=200,
            examples=["08-18"],
            description="The working hours; default: learned from the log.",
        ),
    ] = ""
    days: Annotated[str, Field(max_length=200, examples=["mon-fri"], description="The working days.")] = ""
    time_zone: Annotated[
        str,
        Field(max_length=80, examples=["Europe/Berlin"], description="The time zone of the working hours."),
    ] = "UTC"


class ExportQuery(Query):
    """Filters for an export; only a complete chain can be verified."""

    integration: Annotated[str, Field(description="Only entries about this integration.")] = ""
    since: Moment | None = None
    until: Moment | None = None


class VerifyQuery(Query):
    """The anchors to verify against."""

    anchor: Annotated[
        list[str],
        Field(
            max_length=ANCHORS_MAX,
            description="Anchors of an earlier verification: `<chain>:<sequence>:<64 hex digits>`.",
        ),
    ] = []

"""
Every setting of the sidecar, in one frozen model with defaults for production.

docs/reference/configuration.md describes each key, which a test checks. Addresses, CIDR blocks and route
patterns are parsed here, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    create_model,
    model_validator,
)

from sidecar.domain.cidr import Cidr, parse_cidr
from sidecar.domain.path_masks import PathMasks
from sidecar.domain.paths import PATH_CHARS_MAX
from sidecar.domain.routes import RoutePattern, parse_route_path
from sidecar.domain.scopes import ScopeCategory, Sensitivity
from sidecar.observe.integration_rows import LISTED_DEFAULT, LISTED_MAX
from sidecar.stores.embedded_counters import COUNTERS_MAX
from sidecar.stores.redis.urls import SCHEMES, parse_store_url
from sidecar.transports.listeners import parse_endpoint
from sidecar.transports.server import Endpoint, ListenError, TransportLimits

Value = TypeVar("Value")

_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^`|~-]{1,64}")

LIMIT_MAX = 1 << 30
"""Far above any use, and far below the 31 bits of counters in nghttp2 and grpc-core."""

LIMIT_MIN = {
    "message_bytes_max": 1_024,  # Envoy's Check request is about 340 bytes
    "header_list_bytes_max": 1_024,
    "header_fields_max": 16,
    "buffered_bytes_per_connection_max": 65_536,  # the initial window (RFC 9113 6.9.2)
    "stream_queue_bytes_max": 1_024,
    "unsent_bytes_max": 1 << 20,  # a proxy's burst of some hundred calls
    "unsent_bytes_per_peer_max": 1 << 20,
}
"""Lower limits would refuse ordinary calls; the other limits may be as low as 1."""

LIMIT_TIME_MAX_S = 1_000_000.0
DRAIN_TIMEOUT_MAX_S = 3_600.0
STORE_TIMEOUT_MIN_MS = 5
"""Timers are exact to about 2 ms, so a shorter timeout would leave the store no time."""
STORE_TIMEOUT_MAX_MS = 10_000
REPLICAS_MAX = 16
REPLICAS_TIMEOUT_MAX_MS = 5_000
"""Half of the deadline of a change."""
WORKERS_MAX = 256
LOG_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""A name of a sidecar is the name of a folder."""
LOG_FLUSH_INTERVAL_MAX_S = 300.0
LOG_DAYS_MAX = 3_650
LOG_BYTES_MIN = 1 << 20
LOG_BYTES_MAX = 10**15
PATH_CHARS_MIN = 64
"""A lower bound would refuse ordinary paths."""
EMBEDDED_STORE = "embedded:"
"""Buckets in the memory of the process; every other store is shared."""

SQLITE_REGISTRY = "sqlite:"
"""Prefix of a registry that is a SQLite file, which administrators can change."""


def _parsed(parse: Callable[[str], Value]) -> PlainValidator:
    """A value that is text in the configuration, and parsed with *parse*."""

    def validate(value: object) -> Value:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {value!r}; put it in quotes")
        try:
            return parse(value)
        except ListenError as error:  # no ValueError, as it is also raised when binding
            raise ValueError(str(error)) from None

    return PlainValidator(validate)


def _one_or_many(value: object) -> object:
    """A single item means a list with this item."""
    return value if isinstance(value, tuple | list) else (value,)


def _header_name(text: str) -> str:
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} must be the name of a header in lower case, without '_', which proxies drop or confuse"
        )
    return text


def _method(text: str) -> str:
    if text != text.upper() or not text:
        raise ValueError(f"methods are upper case: write {text.upper() or 'GET'!r}, not {text!r}")
    return text


def _store(text: str) -> str:
    scheme, colon, rest = text.partition(":")
    if f"{scheme}{colon}" == EMBEDDED_STORE:
        if rest:
            raise ValueError(f"'{EMBEDDED_STORE}' takes nothing after the colon")
        return text
    if not colon or scheme not in SCHEMES:
        known = ", ".join([f"'{EMBEDDED_STORE}'", *(f"'{known}://'" for known in SCHEMES)])
        # The message has only the scheme, because the rest may hold a password.
        raise ValueError(f"{scheme!r} is not a store of this version; it must be one of {known}")
    parse_store_url(text)
    return text


def _registry(text: str) -> str:
    if not text.removeprefix(SQLITE_REGISTRY).strip():
        raise ValueError(f"must name a file, such as 'registry.yaml' or '{SQLITE_REGISTRY}registry.sqlite'")
    if text.startswith(f"{SQLITE_REGISTRY}//"):
        raise ValueError(f"must not be a URL: write '{SQLITE_REGISTRY}' and then the path of the file")
    return text


def _workers(value: object) -> object:
    if value == "auto":
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= WORKERS_MAX:
        raise ValueError(f"must be 'auto' or a number of processes from 1 to {WORKERS_MAX}, not {value!r}")
    return value


HeaderName = Annotated[str, _parsed(_header_name)]


class Section(BaseModel):
    """A mapping of the configuration: immutable, with strict types, without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )


class TlsSettings(Section):
    """PEM files, relative to the configuration file; with `client_ca` clients need a certificate."""

    cert: str
    key: str
    client_ca: str | None = None


class ListenItem(Section):
    """One address to listen on; text alone means an item without TLS."""

    address: Annotated[Endpoint, _parsed(parse_endpoint)]
    tls: TlsSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str | dict):
            raise ValueError(
                f"must be 'host:port', 'unix:/path' or a mapping with 'address' and 'tls', not {value!r}"
            )
        return {"address": value} if isinstance(value, str) else value


ListenList = Annotated[tuple[ListenItem, ...], BeforeValidator(_one_or_many)]


class ListenSettings(Section):
    """
    Where to listen, by kind.

    `grpc` and `http` are for proxies, `admin` for administrators, `metrics` for monitoring.
    """

    grpc: Annotated[ListenList, Field(min_length=1)] = (ListenItem.model_validate("127.0.0.1:9191"),)
    http: ListenList = ()
    admin: ListenList = (ListenItem.model_validate("127.0.0.1:9193"),)
    metrics: ListenList = ()


LISTEN_KINDS = tuple(ListenSettings.model_fields)
"""Every kind of listener: the keys of `listen`."""
DECIDING_KINDS = ("grpc", "http")
"""Kinds that answer proxies: every worker serves them while it is ready."""
SUPERVISED_KINDS = tuple(kind for kind in LISTEN_KINDS if kind not in DECIDING_KINDS)
"""Kinds that answer for the whole sidecar: the supervisor serves them, if there is one."""


class RouteSettings(Section):
    """The scope that requests with these methods and this path need; no `methods` = all methods."""

    methods: Annotated[tuple[Annotated[str, _parsed(_method)], ...], BeforeValidator(_one_or_many)] = ("*",)
    path: Annotated[RoutePattern, _parsed(parse_route_path)]
    scope: str


class PathSettings(Section):
    """How the upstream reads paths, and how long a path may be; see `route_readings`."""

    case: Literal["sensitive", "insensitive", "either"] = "either"
    trailing_slash: Literal["ignored", "significant", "either"] = "either"
    chars_max: Annotated[int, Field(ge=PATH_CHARS_MIN, le=LIMIT_MAX)] = PATH_CHARS_MAX


class ClientIpSettings(Section):
    """
    The source of the client's address: the peer of the proxy, or a header.

    No header = the peer. With `trusted_proxies` the header is a list of hops, read from the right.
    """

    header: HeaderName | None = None
    trusted_proxies: Annotated[
        tuple[Annotated[Cidr, _parsed(parse_cidr)], ...], BeforeValidator(_one_or_many)
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, str):
            if value != "peer":
                raise ValueError(f"must be 'peer' or a mapping with 'header', not {value!r}")
            return {}
        return value

    @model_validator(mode="after")
    def _check(self) -> ClientIpSettings:
        if self.header is None and self.trusted_proxies:
            raise ValueError("trusted_proxies needs a header; add 'header: x-forwarded-for'")
        if self.header == "forwarded":
            raise ValueError(
                "header is 'forwarded', which is not supported; have your proxy set 'x-forwarded-for', or a"
                " header with the address alone, such as 'x-client-ip'"
            )
        if self.header == "x-forwarded-for" and not self.trusted_proxies:
            raise ValueError(
                "clients can set x-forwarded-for themselves: add 'trusted_proxies' with the CIDR blocks of"
                " your proxies, or use a header that your proxy overwrites, such as 'x-client-ip'"
            )
        return self


class ForwardAuthSettings(Section):
    """Peers of `listen.http` whose headers are trusted to describe a request; Unix sockets always are."""

    trusted_proxies: Annotated[
        tuple[Annotated[Cidr, _parsed(parse_cidr)], ...], BeforeValidator(_one_or_many)
    ] = (parse_cidr("127.0.0.0/8"), parse_cidr("::1/128"))


class CredentialSettings(Section):
    """A header that may carry the API key, alone or after a scheme such as Bearer."""

    header: HeaderName
    scheme: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: object) -> object:
        if isinstance(value, dict) and set(value) == {"authorization"}:
            return {"header": "authorization", "scheme": value["authorization"]}
        return value

    @model_validator(mode="after")
    def _check(self) -> CredentialSettings:
        if self.header == "authorization" and self.scheme is None:
            raise ValueError("authorization needs a scheme; write 'authorization: Bearer'")
        return self


class CategorySettings(Section):
    """One scope category; see `ScopeCategory`."""

    name: str
    title: str = ""
    sensitivity: Literal["operational", "regulatory", "financial", "pii", "administrative"] = "operational"
    read_only: bool = False

    @model_validator(mode="after")
    def _check(self) -> CategorySettings:
        self.category()
        return self

    def category(self) -> ScopeCategory:
        """The category that these settings describe."""
        title = self.title or self.name.capitalize()
        return ScopeCategory(self.name, title, Sensitivity(self.sensitivity), self.read_only)


def _response_header(text: str) -> str:
    if not _HEADER_NAME.fullmatch(text.lower()):
        raise ValueError(f"{text!r} must be the name of a header, without '_', which proxies drop or confuse")
    return text


ResponseHeaderName = Annotated[str, _parsed(_response_header)]
AlgorithmName = Literal["fixed_window", "token_bucket"]


class RateLimitHeaderSettings(Section):
    """Headers that the rate-limit service adds to responses; `true` means `enabled: true`."""

    enabled: bool = False
    limit: ResponseHeaderName = "RateLimit-Limit"
    remaining: ResponseHeaderName = "RateLimit-Remaining"
    reset: ResponseHeaderName = "RateLimit-Reset"

    @model_validator(mode="before")
    @classmethod
    def _from_bool(cls, value: object) -> object:
        return {"enabled": value} if isinstance(value, bool) else value


class RateLimitDomainSettings(Section):
    """Settings of one domain of the rate-limit files that the files cannot contain."""

    algorithm: AlgorithmName


class RateLimitSettings(Section):
    """Envoy's rate-limit service; a path alone means a section with defaults. No `path` = off."""

    path: str | None = None
    algorithm: AlgorithmName = "fixed_window"
    domains: dict[str, RateLimitDomainSettings] = {}
    all_or_none: bool = False
    merge_domains: bool = False
    shadow_mode: bool = False
    response_headers: RateLimitHeaderSettings = RateLimitHeaderSettings()
    dynamic_metadata: bool = False
    counters_per_domain_max: Annotated[int, Field(ge=1, le=LIMIT_MAX)] = COUNTERS_MAX

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> RateLimitSettings:
        if self.path is None and self.model_fields_set:
            raise ValueError("path is missing; name the folder of the rate-limit files")
        return self

    def algorithm_of(self, domain: str) -> str:
        """The name of the algorithm by which *domain* counts."""
        named = self.domains.get(domain)
        return self.algorithm if named is None else named.algorithm


class TraceSettings(Section):
    """OpenTelemetry traces of sampled decisions; no `endpoint` = off."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/]+$")] | None = None
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0


class LogSettings(Section):
    """The log on standard error; `auto` = text on a terminal, JSON lines otherwise."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"
    refusals: Literal["sampled", "none"] = "sampled"


def _path_mask(text: str) -> str:
    PathMasks([text])
    return text


class DecisionLogSettings(Section):
    """
    The log of every decision; a path alone means a section with defaults. No `path` and no `stdout` = off.

    `name` None = the name of the host.
    """

    path: str | None = None
    stdout: Literal["none", "json"] = "none"
    name: Annotated[str, Field(pattern=LOG_NAME_PATTERN)] | None = None
    sample_allowed: Annotated[float, Field(ge=0, le=1)] = 1.0
    mask: Annotated[tuple[Annotated[str, _parsed(_path_mask)], ...], BeforeValidator(_one_or_many)] = ()
    flush_interval_s: Annotated[float, Field(ge=0.1, le=LOG_FLUSH_INTERVAL_MAX_S)] = 5.0
    keep_days: Annotated[int, Field(ge=1, le=LOG_DAYS_MAX)] = 30
    keep_bytes: Annotated[int, Field(ge=LOG_BYTES_MIN, le=LOG_BYTES_MAX)] = 10 << 30

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> DecisionLogSettings:
        if self.model_fields_set and not self.is_on:
            raise ValueError("path is missing; name the folder of the decision log, or set 'stdout: json'")
        return self

    @property
    def is_on(self) -> bool:
        """Whether decisions are recorded."""
        return self.path is not None or self.stdout != "none"


def _limit_fields() -> dict[str, Any]:
    """The fields of `TransportLimits`, with its defaults and their ranges."""
    described: dict[str, Any] = {}
    for limit in fields(TransportLimits):
        if isinstance(limit.default, int):
            constraint = Field(ge=LIMIT_MIN.get(limit.name, 1), le=LIMIT_MAX)
            described[limit.name] = (Annotated[int, constraint], limit.default)
        elif limit.default == 0:  # 0 = no limit
            described[limit.name] = (Annotated[float, Field(ge=0, le=LIMIT_TIME_MAX_S)], limit.default)
        else:
            described[limit.name] = (Annotated[float, Field(ge=0.001, le=LIMIT_TIME_MAX_S)], limit.default)
    return described


LimitSettings = create_model(
    "LimitSettings", __base__=Section, __doc__="Every bound of the gRPC transports.", **_limit_fields()
)


class Settings(Section):
    """The whole configuration."""

    listen: ListenSettings = ListenSettings()
    transport: Literal["fast", "grpcio"] = "fast"
    registry: Annotated[str, _parsed(_registry)] | None = None
    registry_id: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    webhook_secret_key_file: str | None = None
    store: Annotated[str, _parsed(_store)] = "embedded:"
    store_timeout_ms: Annotated[int, Field(ge=STORE_TIMEOUT_MIN_MS, le=STORE_TIMEOUT_MAX_MS)] = 50
    on_store_error: Literal["deny", "allow", "local"] = "deny"
    registry_replicas_min: Annotated[int, Field(ge=0, le=REPLICAS_MAX)] = 1
    registry_replicas_timeout_ms: Annotated[int, Field(ge=1, le=REPLICAS_TIMEOUT_MAX_MS)] = 1_000
    workers: Annotated[
        Annotated[int, Field(ge=1, le=WORKERS_MAX)] | Literal["auto"], PlainValidator(_workers)
    ] = 1
    routes: tuple[RouteSettings, ...] = ()
    paths: PathSettings = PathSettings()
    scope_categories: tuple[CategorySettings, ...] = ()
    client_ip: ClientIpSettings = ClientIpSettings()
    forward_auth: ForwardAuthSettings = ForwardAuthSettings()
    credentials: Annotated[tuple[CredentialSettings, ...], Field(min_length=1)] = (
        CredentialSettings(header="x-api-key"),
        CredentialSettings(header="authorization", scheme="Bearer"),
    )
    enforcement: Literal["enforce", "shadow"] = "enforce"
    whoami: bool = True
    invalid_keys_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = 600
    unauthenticated_status: Literal[403, 401] = 403
    ietf_headers: bool = False
    reflection: bool = True
    rate_limits: RateLimitSettings = RateLimitSettings()
    drain_timeout_s: Annotated[float, Field(gt=0, le=DRAIN_TIMEOUT_MAX_S)] = 10.0
    limits: LimitSettings = LimitSettings()  # type: ignore[valid-type]  # made from TransportLimits
    log: LogSettings = LogSettings()
    traces: TraceSettings = TraceSettings()
    integration_series_max: Annotated[int, Field(ge=0, le=LISTED_MAX)] = LISTED_DEFAULT
    decision_log: DecisionLogSettings = DecisionLogSettings()

    @property
    def store_timeout_s(self) -> float:
        """How long a decision waits for the shared store."""
        return self.store_timeout_ms / 1_000

    def transport_limits(self) -> TransportLimits:
        """The bounds of the transports."""
        return TransportLimits(**self.limits.model_dump())  # type: ignore[attr-defined]

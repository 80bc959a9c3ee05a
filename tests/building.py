"""
Builders for tests: a registry, a policy and a decider in two lines; fakes of clock, store and call.

    key = make_key()
    decider = make_decider(make_integration(key))

Everything is real but what a test must hold in its hand: the time, a store that answers on request,
and the far end of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.api_keys import NewApiKey, generate_api_key
from sidecar.domain.bucket import BucketSet, Taken
from sidecar.domain.cidr import parse_cidr
from sidecar.domain.client_address import ClientAddressRule, PeerAddress
from sidecar.domain.credential_sources import DEFAULT_SOURCES, CredentialSource, CredentialSources
from sidecar.domain.integrations import Credential, Integration
from sidecar.domain.policy import AccessRequest, Policy, Route
from sidecar.domain.route_readings import RouteReadings
from sidecar.domain.routes import parse_route_path
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.rpc.statuses import StatusCode
from sidecar.services.decider import Decider
from sidecar.services.ext_authz import ExtAuthzService
from sidecar.services.store_fallback import StoreFallback
from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import BucketStore, StoreFault, TakeDone

NOW_US = 1_764_000_000_000_000
"""Where a manual clock begins: 2025-11-24T16:00:00Z."""

SECOND_US = 1_000_000
CLIENT_IP = "198.51.100.7"

ROUTES: tuple[tuple[str, str, str | None], ...] = (
    ("GET", "/v1/orders/{id}", "orders:read"),
    ("POST", "/v1/orders", "orders:write"),
    ("GET", "/v1/finance/**", "finance:read"),
    ("GET", "/v1/status", None),
)
"""Method, path and scope of the routes that `make_policy` begins with; None = any known caller."""


class ManualClock:
    """A clock in µs since the epoch that only moves on request."""

    def __init__(self, now_us: int = NOW_US) -> None:
        """Stand at *now_us*; `reads` counts how often it was asked."""
        self.now_us = now_us
        self.reads = 0

    def __call__(self) -> int:
        """The time."""
        self.reads += 1
        return self.now_us

    def advance(self, seconds: float = 0, us: int = 0) -> None:
        """Move on, or back by a negative amount."""
        self.now_us += round(seconds * SECOND_US) + us


def make_key(prefix: str = "sck") -> NewApiKey:
    """A fresh API key."""
    return generate_api_key(prefix)


def make_integration(
    key: NewApiKey | None = None,
    *,
    id: str = "acme",
    scopes: Iterable[str] = ("orders:read",),
    allowlist: Iterable[str] = (),
    expires_at_us: int | None = None,
    **fields: Any,
) -> Integration:
    """An active integration that owns *key*; *fields* are those of `Integration`."""
    catalogue = ScopeCatalogue()
    credentials = () if key is None else (Credential(key.credential_id, key.digest, expires_at_us),)
    return Integration(
        id=id,
        name=fields.pop("name", "Acme GmbH"),
        scopes=frozenset(catalogue.parse(scope) for scope in scopes),
        ip_allowlist=tuple(parse_cidr(entry) for entry in allowlist),
        credentials=fields.pop("credentials", credentials),
        **fields,
    )


def make_policy(
    *,
    routes: Iterable[tuple[str, str, str | None]] = ROUTES,
    sources: Iterable[CredentialSource] = DEFAULT_SOURCES,
    client_address: ClientAddressRule | None = None,
) -> Policy:
    """A policy over *routes*; the client is the peer unless *client_address* says otherwise."""
    catalogue = ScopeCatalogue()
    entries = [
        (frozenset({method}), parse_route_path(path), Route(catalogue.parse(scope) if scope else None, path))
        for method, path, scope in routes
    ]
    rule = PeerAddress() if client_address is None else client_address
    return Policy(CredentialSources(tuple(sources)), rule, RouteReadings(entries), catalogue)


def make_decider(
    *records: Integration,
    policy: Policy | None = None,
    store: BucketStore | None = None,
    clock: Callable[[], int] | None = None,
    metrics: Metrics | None = None,
    store_timeout_s: float = 0.05,
    fallback: StoreFallback | None = None,
    **options: Any,
) -> Decider:
    """A decider over the integrations *records*, on an embedded store and a manual clock."""
    clock = ManualClock() if clock is None else clock
    return Decider(
        make_policy() if policy is None else policy,
        Snapshot.compile(records),
        EmbeddedBucketStore(clock) if store is None else store,
        make_metrics() if metrics is None else metrics,
        clock,
        store_timeout_s,
        fallback,
        **options,
    )


def make_ext_authz(*records: Integration, style: AnswerStyle | None = None, **parts: Any) -> ExtAuthzService:
    """Envoy's service over `make_decider(*records, **parts)`."""
    return ExtAuthzService(make_decider(*records, **parts), AnswerStyle() if style is None else style)


def make_metrics() -> Metrics:
    """The program's table of metrics, all zero."""
    return Metrics(TABLE)


def make_request(
    api_key: str | None = None,
    *,
    method: str = "GET",
    path: str = "/v1/orders/42",
    headers: Mapping[str, str] | None = None,
    peer: str = CLIENT_IP,
    scope: str = "",
) -> AccessRequest:
    """A request that the default policy allows, given the key of an integration with orders:read."""
    all_headers = {**({} if api_key is None else {"x-api-key": api_key}), **(headers or {})}
    return AccessRequest(method, path, all_headers.get, peer, scope or None)


def make_check(
    api_key: str | None = None,
    *,
    method: str = "GET",
    path: str = "/v1/orders/42",
    headers: Mapping[str, str] | None = None,
    raw_headers: Iterable[tuple[str, bytes]] | None = None,
    peer: str = CLIENT_IP,
    scope: str = "",
) -> bytes:
    """A serialized CheckRequest; *raw_headers* makes it one of `encode_raw_headers`."""
    request = CheckRequest()
    attributes = request.attributes
    attributes.source.address.socket_address.address = peer
    http = attributes.request.http
    http.method, http.path = method, path
    if raw_headers is not None:
        http.header_map.CopyFrom(
            HeaderMap(headers=[HeaderValue(key=name, raw_value=value) for name, value in raw_headers])
        )
    else:
        http.headers.update({} if api_key is None else {"x-api-key": api_key})
        http.headers.update(headers or {})
    if scope:
        attributes.context_extensions["scope"] = scope
    message: bytes = request.SerializeToString()
    return message


class FakeCall:
    """The far end of a call, unary or streaming: keeps what the handler does to it."""

    def __init__(self, deadline_s: float | None = None, metadata: Mapping[str, str] | None = None) -> None:
        """A call with this deadline on the loop's clock and this request metadata."""
        self.deadline_s = deadline_s
        self.on_cancel: Callable[[], None] | None = None
        self.is_cancelled = False
        self.replies: list[bytes] = []
        self.failures: list[tuple[StatusCode, str]] = []
        self.is_finished = False
        self._metadata = dict(metadata or {})

    def metadata(self, name: str) -> str | None:
        """See `Call.metadata`."""
        return self._metadata.get(name)

    def reply(self, message: bytes) -> None:
        """Keep the answer."""
        self.replies.append(message)

    def send(self, message: bytes) -> None:
        """Keep one message of a stream."""
        self.replies.append(message)

    def finish(self) -> None:
        """The stream has ended well."""
        self.is_finished = True

    def fail(self, code: StatusCode, detail: str) -> None:
        """Keep the failure."""
        self.failures.append((code, detail))

    def cancel(self) -> None:
        """The caller goes away."""
        self.is_cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()


class PendingTake(NamedTuple):
    """One take that waits for its trip."""

    buckets: BucketSet
    asked: int
    timeout_s: float
    done: TakeDone


class RecordingStore:
    """
    A store whose every take needs a trip: it keeps them, and the test answers when it likes.

    `tried` are the takes asked for at once.
    """

    def __init__(self) -> None:
        """Begin with nothing pending."""
        self.tried: list[tuple[BucketSet, int]] = []
        self.pending: list[PendingTake] = []

    def take_now(self, buckets: BucketSet, asked: int) -> None:
        """Never available at once."""
        self.tried.append((buckets, asked))

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """Keep the take."""
        self.pending.append(PendingTake(buckets, asked, timeout_s, done))

    def answer(self, outcome: Taken | StoreFault, index: int = 0) -> None:
        """Answer the pending take number *index*."""
        self.pending.pop(index).done(outcome)


class FixedStore:
    """A store that answers every take at once with one outcome: the real shape, any figures."""

    def __init__(self, outcome: Taken | StoreFault = StoreFault.UNAVAILABLE) -> None:
        """Answer with *outcome*, until that is set to another; `takes` counts them."""
        self.outcome = outcome
        self.takes = 0

    def take_now(self, buckets: BucketSet, asked: int) -> Taken | StoreFault:
        """The outcome."""
        self.takes += 1
        return self.outcome

    def take_later(self, buckets: BucketSet, asked: int, timeout_s: float, done: TakeDone) -> None:
        """Never needed."""
        raise AssertionError("take_now has answered")

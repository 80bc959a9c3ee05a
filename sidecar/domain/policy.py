"""
The policy: checks API key, integration, suspension, IP allowlist, path, route and scope, in this order.

`Policy.evaluate` decides everything but the rate limit. The caller then takes from the bucket (`asked` 1) or,
for a denial with limit headers, peeks into it (`asked` 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

from sidecar.domain.api_keys import ApiKeyError, credential_id_of, matches
from sidecar.domain.cidr import Address, AddressError
from sidecar.domain.client_address import ClientAddressRule
from sidecar.domain.credential_sources import AmbiguousCredentialError, CredentialSources
from sidecar.domain.decision_rows import joined
from sidecar.domain.decisions import Reason
from sidecar.domain.enforcement import NO_RULES, Rule
from sidecar.domain.key_flood import KeyFloodLimiter
from sidecar.domain.path_faults import PathFault, PathRefusedError
from sidecar.domain.route_readings import RouteReadings
from sidecar.domain.scopes import Scope, ScopeCatalogue, ScopeError
from sidecar.domain.snapshot import CompiledCredential, CompiledIntegration, Snapshot
from sidecar.domain.values import Value

_OK: Final = Reason.OK

SCOPE_OVERRIDES_MAX: Final = 1_024
"""Maximum number of cached scopes that proxies and callers state."""

MISCONFIGURED_REPORTS_MAX: Final = 64
"""Maximum number of misconfigured scopes that are reported, each once."""


@final
class AccessRequest(Value):
    """
    A request to decide, independent of the dialect.

    `path` is raw and may have a query; `header` returns a request header by lower-case name, repeats joined
    with ','; `peer` is the address of the proxy's client as the proxy saw it; `scope` is the scope that the
    proxy's route requires, or 'none'; None = the route table decides.

    Native callers may also set `api_key`, None = read it from the headers; and `address_rule`, which
    determines the client's address, None = the configured rule. `dialect` names the service in the decision
    log.
    """

    __slots__ = ("address_rule", "api_key", "dialect", "header", "method", "path", "peer", "scope")

    def __init__(
        self,
        method: str,
        path: str,
        header: Callable[[str], str | None],
        peer: str,
        scope: str | None = None,
        api_key: str | None = None,
        address_rule: ClientAddressRule | None = None,
        dialect: str = "",
    ) -> None:
        """See the class."""
        self.method = method
        self.path = path
        self.header = header
        self.peer = peer
        self.scope = scope
        self.api_key = api_key
        self.address_rule = address_rule
        self.dialect = dialect


@final
class Evaluation(Value):
    """
    The result of the policy for a request, before the bucket.

    `reason` OK = allowed if the bucket admits it. `integration` None = the caller is unknown. `would_deny` is
    the first reason of a rule in shadow, which refuses nothing; None = no such rule failed.
    `client_address` is packed, None = unknown or not checked; `scope` is the required scope, None = not
    required or not checked; `key_headers` are the headers that the proxy removes before the upstream;
    `detail` explains the reason to the caller, in sentences of a closed list, '' = no explanation. `route` is
    the route that matched, None = none or not checked.
    """

    __slots__ = (
        "client_address",
        "credential",
        "detail",
        "integration",
        "key_headers",
        "reason",
        "route",
        "scope",
        "would_deny",
    )

    def __init__(
        self,
        reason: Reason,
        integration: CompiledIntegration | None = None,
        credential: CompiledCredential | None = None,
        key_headers: tuple[str, ...] = (),
        client_address: bytes | None = None,
        scope: Scope | None = None,
        detail: str = "",
        would_deny: Reason | None = None,
        route: Route | None = None,
    ) -> None:
        """See the class."""
        self.reason = reason
        self.integration = integration
        self.credential = credential
        self.key_headers = key_headers
        self.client_address = client_address
        self.scope = scope
        self.detail = detail
        self.would_deny = would_deny
        self.route = route


@dataclass(frozen=True, slots=True)
class Route:
    """
    The requirement of a route: a scope, or None = any active integration may call it.

    Routes with the same scope are equal, whatever their `path`.
    """

    scope: Scope | None
    path: str = field(default="", compare=False)
    log_text: str = field(init=False, repr=False, compare=False)
    """Scope and path for the decision log, as text made once."""

    def __post_init__(self) -> None:
        """Make the text for the log."""
        scope = "" if self.scope is None else str(self.scope)
        object.__setattr__(self, "log_text", joined(scope, self.path))

    def __str__(self) -> str:
        """The form of the configuration."""
        return f"{self.path} (scope: {self.scope or 'none'})"


class Policy:
    """
    The rules of one configuration; each request brings the registry's snapshot.

    `overrides` caches the routes of scopes that proxies name, None = the scope is invalid.
    """

    __slots__ = (
        "_catalogue",
        "_misconfigured",
        "_resolves_every_address",
        "client_address",
        "key_flood",
        "on_misconfigured",
        "overrides",
        "routes",
        "shadow",
        "sources",
    )

    def __init__(
        self,
        sources: CredentialSources,
        client_address: ClientAddressRule,
        routes: RouteReadings[Route],
        catalogue: ScopeCatalogue,
        *,
        resolves_every_address: bool = False,
        key_flood: KeyFloodLimiter | None = None,
        shadow: frozenset[Rule] = NO_RULES,
    ) -> None:
        """
        Store the rules. A path without a route is denied with route_unknown.

        *shadow* = the rules that are in shadow for every integration.

        *resolves_every_address* = determine the client's address also for integrations without an allowlist,
        so that it can be recorded.
        """
        self.sources = sources
        self.client_address = client_address
        self.routes = routes
        self._catalogue = catalogue
        self._resolves_every_address = resolves_every_address
        self.key_flood = key_flood
        self.shadow = shadow
        self.on_misconfigured: Callable[[str], None] | None = None
        """Receives a message about each invalid scope that a proxy states, once per scope."""
        self._misconfigured: set[str] = set()
        self.overrides: dict[str, Route | None] = {}

    def evaluate(self, request: AccessRequest, snapshot: Snapshot, now_us: int) -> Evaluation:
        """Check *request*; the first rule that fails determines the reason."""
        try:
            api_key = request.api_key
            key_headers: tuple[str, ...] = ()
            if api_key is None:
                found = self.sources.find(request.header)
                if found is None:
                    return _MISSING
                api_key, key_headers = found
            credential = snapshot.credentials.get(credential_id_of(api_key))
        except ApiKeyError:
            return _MALFORMED
        except AmbiguousCredentialError as error:
            return Evaluation(Reason.MALFORMED_CREDENTIAL, detail=str(error))
        if credential is None or not matches(api_key, credential.digest):
            return self._unknown(request, now_us) if snapshot.is_loaded else _UNLOADED
        if credential.expires_at_us is not None and credential.expires_at_us <= now_us:
            return Evaluation(Reason.EXPIRED_CREDENTIAL)
        return self.evaluate_known(request, credential, key_headers)

    def _unknown(self, request: AccessRequest, now_us: int) -> Evaluation:
        if self.key_flood is None:
            return _UNKNOWN
        address = self.address_of(request)
        if address is None:
            return _UNKNOWN
        return _UNKNOWN if self.key_flood.admits(address, now_us) else _KEY_FLOOD

    def address_of(self, request: AccessRequest) -> Address | None:
        """Return the packed address of the client of *request*; None = it cannot be determined."""
        rule = self.client_address if request.address_rule is None else request.address_rule
        try:
            return rule.resolve(request.peer, request.header)
        except AddressError:
            return None

    def evaluate_known(
        self, request: AccessRequest, credential: CompiledCredential, key_headers: tuple[str, ...]
    ) -> Evaluation:
        """Check *request* with the key of *credential*, which `key_headers` carried."""
        integration = credential.integration
        if integration.is_suspended:
            return Evaluation(Reason.INTEGRATION_SUSPENDED, integration, credential, key_headers)
        address = would_deny = None
        allowlist = integration.allowlist
        if allowlist is not None or self._resolves_every_address:
            rule = self.client_address if request.address_rule is None else request.address_rule
            problem = ""
            try:
                address = rule.resolve(request.peer, request.header)
            except AddressError as error:
                problem = f"{_NO_ADDRESS}: {error}"
            if allowlist is not None and (address is None or not allowlist.contains(address)):
                if not self.is_shadowed(integration, Rule.ALLOWLIST):
                    return Evaluation(
                        Reason.IP_NOT_ALLOWED, integration, credential, key_headers, address, None, problem
                    )
                would_deny = Reason.IP_NOT_ALLOWED
        scope = route = None
        reason, detail = _OK, ""
        try:
            if request.scope is None:
                route = self.routes.find(request.method, request.path)
            else:
                self.routes.normalize(request.path)
                route = self.route_named(request.scope)
            if route is None:
                reason = self._no_route_reason(request)
            else:
                scope = route.scope
                if scope is not None and scope not in integration.scopes:
                    reason = Reason.SCOPE_MISSING
        except PathRefusedError as refusal:
            reason = Reason.URI_TOO_LONG if refusal.fault is PathFault.TOO_LONG else Reason.PATH_REFUSED
            detail = refusal.advice
        if reason is not _OK:
            if not self.is_shadowed(integration, Rule.SCOPES):
                return Evaluation(
                    reason, integration, credential, key_headers, address, scope, detail, None, route
                )
            would_deny = would_deny or reason
        return Evaluation(_OK, integration, credential, key_headers, address, scope, "", would_deny, route)

    def is_shadowed(self, integration: CompiledIntegration, rule: Rule) -> bool:
        """Return whether *rule* is in shadow for *integration*; asked only when the rule fails."""
        return rule in integration.shadow or rule in self.shadow

    def takes(self, evaluation: Evaluation) -> int:
        """
        Return how often a known caller's request takes from the bucket: 1, or 0 = a peek.

        With the limit in shadow, a request that another rule would deny takes nothing, as when all rules are
        enforced. With the limit enforced, it is admitted and therefore takes.
        """
        if evaluation.reason is not _OK:
            return 0
        if evaluation.would_deny is None or evaluation.integration is None:
            return 1
        return 0 if self.is_shadowed(evaluation.integration, Rule.LIMIT) else 1

    def limited(self, evaluation: Evaluation, reason: Reason) -> tuple[Reason, Reason | None]:
        """Return the reason and `would_deny` of a request that the limit refuses for *reason*."""
        assert evaluation.integration is not None  # only known callers have buckets
        if self.is_shadowed(evaluation.integration, Rule.LIMIT):
            return _OK, evaluation.would_deny or reason
        return reason, None

    def _no_route_reason(self, request: AccessRequest) -> Reason:
        """Return why *request* has no route."""
        if request.scope is not None:
            self._report(request.scope)
            return Reason.ROUTE_MISCONFIGURED
        return Reason.METHOD_NOT_ALLOWED if self.routes.has_path(request.path) else Reason.ROUTE_UNKNOWN

    def _report(self, text: str) -> None:
        """Report the invalid scope *text*, once."""
        if (
            self.on_misconfigured is not None
            and text not in self._misconfigured
            and len(self._misconfigured) < MISCONFIGURED_REPORTS_MAX
        ):
            self._misconfigured.add(text)
            try:
                self._catalogue.parse_required(text)
            except ScopeError as error:
                self.on_misconfigured(str(error))

    def route_named(self, text: str) -> Route | None:
        """Return the route that requires the scope *text*, or 'none'; None = the scope is invalid."""
        try:
            return self.overrides[text]
        except KeyError:
            pass
        try:
            route = Route(self._catalogue.parse_required(text))
        except ScopeError:
            route = None
        if len(self.overrides) < SCOPE_OVERRIDES_MAX:
            self.overrides[text] = route
        return route


_NO_ADDRESS: Final = (
    "This integration has an IP allowlist, and the client address of the request cannot be determined;"
    " the operator of the API must correct this"
)
_MISSING: Final = Evaluation(Reason.MISSING_CREDENTIAL)
_KEY_FLOOD: Final = Evaluation(Reason.KEY_FLOOD)
_MALFORMED: Final = Evaluation(Reason.MALFORMED_CREDENTIAL)
_UNLOADED: Final = Evaluation(Reason.STORE_UNAVAILABLE)
_UNKNOWN: Final = Evaluation(Reason.UNKNOWN_CREDENTIAL)

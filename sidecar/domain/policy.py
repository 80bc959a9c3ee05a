"""
The policy: API key, integration, suspension, IP allowlist, path, scope, in this order.

`Policy.evaluate` says at once what the registry decides; what is left is to take from the bucket
(`asked` 1) or, for a refusal that is answered with limits, to peek into it (`asked` 0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sidecar.domain.api_keys import ApiKeyError, credential_id_of, matches
from sidecar.domain.client_address import ClientAddressRule
from sidecar.domain.credential_sources import AmbiguousCredentialError, CredentialSources
from sidecar.domain.decisions import Reason
from sidecar.domain.paths import PathRefusedError, normalise_path
from sidecar.domain.routes import RouteTable
from sidecar.domain.scopes import Scope, ScopeCatalogue, ScopeError
from sidecar.domain.snapshot import CompiledCredential, CompiledIntegration, Snapshot

SCOPE_OVERRIDES_MAX = 1_024


class AccessRequest(NamedTuple):
    """
    What a proxy asks about, whatever its dialect.

    `path` is raw and may hold a query; `header` returns a request header by lower-case name, repeats
    joined with ','; `peer` is the address of the proxy's client as the proxy saw it; `scope` is the
    scope that the proxy's route asks for, '' = the route table decides.

    Callers that are no proxy state more by themselves: `api_key`, None = it is looked for in the headers;
    and `address_rule`, how to find the client's address, None = by the configuration's rule.
    """

    method: str
    path: str
    header: Callable[[str], str | None]
    peer: str
    scope: str = ""
    api_key: str | None = None
    address_rule: ClientAddressRule | None = None


class Evaluation(NamedTuple):
    """
    What the registry says about a request, before the bucket.

    `reason` OK = allowed if the bucket admits it. `integration` None = the caller is not known.
    `client_address` is packed, None = unknown or not looked at; `scope` is the scope asked for, None =
    none needed or not looked at; `key_header` is the header to take away from the upstream.
    """

    reason: Reason
    integration: CompiledIntegration | None = None
    credential: CompiledCredential | None = None
    key_header: str = ""
    client_address: bytes | None = None
    scope: Scope | None = None


class Route(NamedTuple):
    """What a route asks for: a scope, or None = any known, active integration may pass."""

    scope: Scope | None


class Policy:
    """The rules of one configuration; the registry comes in as a snapshot with each request."""

    __slots__ = (
        "_catalogue",
        "_overrides",
        "_resolves_every_address",
        "client_address",
        "routes",
        "sources",
    )

    def __init__(
        self,
        sources: CredentialSources,
        client_address: ClientAddressRule,
        routes: RouteTable[Route],
        catalogue: ScopeCatalogue,
        *,
        resolves_every_address: bool = False,
    ) -> None:
        """
        Keep the rules. A path that no route matches is denied: scope_missing.

        *resolves_every_address* = the client's address is worked out for integrations without an
        allowlist, too, for whoever keeps note of it.
        """
        self.sources = sources
        self.client_address = client_address
        self.routes = routes
        self._catalogue = catalogue
        self._resolves_every_address = resolves_every_address
        self._overrides: dict[str, Scope | None] = {}

    def evaluate(self, request: AccessRequest, snapshot: Snapshot, now_us: int) -> Evaluation:
        """Decide all that the registry decides; the first rule that fails gives the reason."""
        try:
            api_key, key_header = request.api_key, ""
            if api_key is None:
                found = self.sources.find(request.header)
                if found is None:
                    return _MISSING
                api_key, key_header = found
            credential = snapshot.credentials.get(credential_id_of(api_key))
        except (AmbiguousCredentialError, ApiKeyError):
            return _MALFORMED
        if credential is None or not matches(api_key, credential.digest):
            return _UNKNOWN if snapshot.is_loaded else _UNLOADED
        if credential.expires_at_us is not None and credential.expires_at_us <= now_us:
            return Evaluation(Reason.EXPIRED_CREDENTIAL)
        return self._evaluate_known(request, credential, key_header)

    def _evaluate_known(
        self, request: AccessRequest, credential: CompiledCredential, key_header: str
    ) -> Evaluation:
        integration = credential.integration
        if integration.is_suspended:
            return Evaluation(Reason.INTEGRATION_SUSPENDED, integration, credential, key_header)
        address = None
        allowlist = integration.allowlist
        if allowlist is not None or self._resolves_every_address:
            rule = self.client_address if request.address_rule is None else request.address_rule
            address = rule.resolve(request.peer, request.header)
            if allowlist is not None and (address is None or not allowlist.contains(address)):
                return Evaluation(Reason.IP_NOT_ALLOWED, integration, credential, key_header, address)
        try:
            path = normalise_path(request.path)
        except PathRefusedError:
            return Evaluation(Reason.PATH_REFUSED, integration, credential, key_header, address)
        if request.scope:
            scope = self.scope_named(request.scope)
            permitted = scope in integration.scopes
        else:
            route = self.routes.match(request.method, path)
            scope = route.scope if route is not None else None
            permitted = route is not None and (scope is None or scope in integration.scopes)
        reason = Reason.OK if permitted else Reason.SCOPE_MISSING
        # The usual way out: a named tuple's own constructor takes three times as long.
        return tuple.__new__(Evaluation, (reason, integration, credential, key_header, address, scope))

    def scope_named(self, text: str) -> Scope | None:
        """The scope that a caller asks for by its name; None = not a scope, which nobody has."""
        try:
            return self._overrides[text]
        except KeyError:
            pass
        try:
            scope = self._catalogue.parse(text)
        except ScopeError:
            scope = None
        if len(self._overrides) < SCOPE_OVERRIDES_MAX:
            self._overrides[text] = scope
        return scope


_MISSING = Evaluation(Reason.MISSING_CREDENTIAL)
_MALFORMED = Evaluation(Reason.MALFORMED_CREDENTIAL)
_UNLOADED = Evaluation(Reason.STORE_UNAVAILABLE)
_UNKNOWN = Evaluation(Reason.UNKNOWN_CREDENTIAL)

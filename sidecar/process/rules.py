"""Compiles settings into the rules of the domain, and checks them together."""

from __future__ import annotations

from typing import NamedTuple

from sidecar.domain.answers import AnswerStyle
from sidecar.domain.client_address import ClientAddressRule, ClientHeader, ForwardedFor, PeerAddress
from sidecar.domain.credential_sources import CredentialSource, CredentialSources
from sidecar.domain.enforcement import ALL_RULES, NO_RULES
from sidecar.domain.key_flood import KeyFloodLimiter
from sidecar.domain.policy import Policy, Route
from sidecar.domain.prefix_trie import PrefixTrie
from sidecar.domain.route_readings import Case, RouteReadings, TrailingSlash
from sidecar.domain.routes import RouteError
from sidecar.domain.scopes import DEFAULT_CATEGORIES, Scope, ScopeCatalogue, ScopeError
from sidecar.process.config import Config
from sidecar.sources.file_faults import FaultList, FileFault

SHARED_STORE_KEYS = (
    "store_timeout_ms",
    "on_store_error",
    "registry_replicas_min",
    "registry_replicas_timeout_ms",
)
"""Settings that have an effect only with a shared store."""


class Rules(NamedTuple):
    """The rules that one configuration decides by; `warnings` are about valid but doubtful settings."""

    policy: Policy
    style: AnswerStyle
    catalogue: ScopeCatalogue
    warnings: tuple[FileFault, ...]


def build_rules(config: Config) -> Rules:
    """
    Compile the rules of *config*.

    Raises:
        FileFaultsError: scopes, categories or routes contradict each other; all mistakes are counted.
    """
    faults = FaultList(config.tree.file)
    catalogue = _catalogue(config, faults)
    routes, warnings = _routes(config, catalogue, faults)
    sources = tuple(
        CredentialSource(credential.header, credential.scheme) for credential in config.settings.credentials
    )
    _check_sources(config, sources, faults)
    faults.raise_any()
    per_minute = config.settings.invalid_keys_per_minute
    policy = Policy(
        CredentialSources(sources),
        client_address_rule(config),
        routes,
        catalogue,
        key_flood=KeyFloodLimiter(per_minute) if per_minute else None,
        resolves_every_address=config.has_control_plane or config.settings.decision_log.is_on,
        shadow=ALL_RULES if config.settings.enforcement == "shadow" else NO_RULES,
    )
    style = AnswerStyle(
        config.settings.unauthenticated_status, config.settings.ietf_headers, " or ".join(map(_hint, sources))
    )
    return Rules(policy, style, catalogue, (*warnings, *_without_effect(config)))


def client_address_rule(config: Config) -> ClientAddressRule:
    """The rule by which *config* finds the client's address."""
    rule = config.settings.client_ip
    if rule.header is None:
        return PeerAddress()
    if rule.trusted_proxies:
        return ForwardedFor(PrefixTrie(rule.trusted_proxies), rule.header)
    return ClientHeader(rule.header)


def _without_effect(config: Config) -> tuple[FileFault, ...]:
    """Warnings of settings for a shared store when the store is embedded."""
    if config.shared_store is not None:
        return ()
    return tuple(
        config.fault((key,), "has no effect with the embedded store, which always answers; set 'store'")
        for key in SHARED_STORE_KEYS
        if (key,) in config.tree.origins
    )


def _catalogue(config: Config, faults: FaultList) -> ScopeCatalogue:
    categories = [scope_category.category() for scope_category in config.settings.scope_categories]
    try:
        return ScopeCatalogue(categories or DEFAULT_CATEGORIES)
    except ScopeError as error:
        faults.put(config.fault(("scope_categories",), f"{error}; remove one"))
        return ScopeCatalogue()


def _routes(
    config: Config, catalogue: ScopeCatalogue, faults: FaultList
) -> tuple[RouteReadings[Route], tuple[FileFault, ...]]:
    paths = config.settings.paths
    entries = []
    for index, route in enumerate(config.settings.routes):
        scope: Scope | None = None
        try:
            scope = catalogue.parse_required(route.scope)
        except ScopeError as error:
            message = f"{error}{catalogue.did_you_mean(route.scope)}"
            faults.put(config.fault(("routes", index, "scope"), message))
        entries.append((frozenset(route.methods), route.path, Route(scope, str(route.path))))
    try:
        table = RouteReadings(entries, Case(paths.case), TrailingSlash(paths.trailing_slash), paths.chars_max)
    except RouteError as error:
        faults.put(config.fault(("routes",), str(error)))
        return RouteReadings[Route](()), ()
    return table, tuple(
        config.fault(
            ("routes", entry.index),
            f"never matches: {_numbered(entry.hidden_by)} match first; move it up or remove it",
        )
        for entry in table.unreachable()
    )


def _numbered(indexes: tuple[int, ...]) -> str:
    return " and ".join(f"routes[{index}]" for index in indexes)


def _check_sources(config: Config, sources: tuple[CredentialSource, ...], faults: FaultList) -> None:
    for index, source in enumerate(sources):
        if source in sources[:index]:
            faults.put(config.fault(("credentials", index), f"{source.header!r} is listed twice; remove one"))


def _hint(source: CredentialSource) -> str:
    return f"{source.header}: {source.scheme} <key>" if source.scheme else f"{source.header}: <key>"

"""Shadow mode: the rules that are evaluated and counted, but not enforced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from sidecar.domain.decisions import Reason


class Rule(StrEnum):
    """
    A rule of an integration that can be in shadow.

    `SCOPES` are path, route and scope. Keys and suspension have no member: they are always enforced.
    """

    ALLOWLIST = "allowlist"
    SCOPES = "scopes"
    LIMIT = "limit"


NO_RULES: frozenset[Rule] = frozenset()
ALL_RULES = frozenset(Rule)
RULE_NAMES = tuple(rule.value for rule in Rule)


RULE_OF: Mapping[Reason, Rule] = {
    Reason.IP_NOT_ALLOWED: Rule.ALLOWLIST,
    Reason.PATH_REFUSED: Rule.SCOPES,
    Reason.URI_TOO_LONG: Rule.SCOPES,
    Reason.ROUTE_UNKNOWN: Rule.SCOPES,
    Reason.METHOD_NOT_ALLOWED: Rule.SCOPES,
    Reason.ROUTE_MISCONFIGURED: Rule.SCOPES,
    Reason.SCOPE_MISSING: Rule.SCOPES,
    Reason.RATE_LIMITED: Rule.LIMIT,
    Reason.STORE_UNAVAILABLE: Rule.LIMIT,
    Reason.OVERLOADED: Rule.LIMIT,
}
"""The reasons that shadow mode can hide, with their rules; every other reason always refuses."""


def rule_names(rules: Iterable[Rule]) -> list[str]:
    """
    Return the names of *rules* in the order of `Rule`.

    >>> rule_names({Rule.LIMIT, Rule.ALLOWLIST})
    ['allowlist', 'limit']
    """
    held = frozenset(rules)
    return [rule.value for rule in Rule if rule in held]

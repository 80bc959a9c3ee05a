"""Scopes: permissions of integrations to read or write, by category; and the default categories."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from sidecar.domain.suggestions import did_you_mean

NO_SCOPE = "none"
"""Instead of a scope: any active integration may call."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class ScopeError(ValueError):
    """A scope or a scope category is malformed, unknown or not allowed."""


class Sensitivity(Enum):
    """The kind of data of a category, for reviews and reports."""

    OPERATIONAL = "operational"
    REGULATORY = "regulatory"
    FINANCIAL = "financial"
    PII = "pii"
    ADMINISTRATIVE = "administrative"


@dataclass(frozen=True, slots=True)
class ScopeCategory:
    """One category: `name` is used in scopes (lower case), `title` is displayed."""

    name: str
    title: str
    sensitivity: Sensitivity = Sensitivity.OPERATIONAL
    read_only: bool = False

    def __post_init__(self) -> None:
        """Reject an invalid name."""
        if not _NAME.fullmatch(self.name):
            raise ScopeError(
                f"category name {self.name!r} must be 1-32 of a-z, 0-9, '_' and '-', starting with a letter"
            )


class Scope(NamedTuple):
    """A permission, written `category:read` or `category:write`; write does not include read."""

    category: str
    access: str

    def __str__(self) -> str:
        """The form in configurations and answers."""
        return f"{self.category}:{self.access}"


DEFAULT_CATEGORIES: tuple[ScopeCategory, ...] = (
    ScopeCategory("inventory", "Inventory"),
    ScopeCategory("consumables", "Consumables"),
    ScopeCategory("orders", "Orders"),
    ScopeCategory("skus", "SKUs"),
    ScopeCategory("equipment", "Equipment"),
    ScopeCategory("sensors", "Sensors"),
    ScopeCategory("taxonomies", "Taxonomies", read_only=True),
    ScopeCategory("compliance", "Compliance", Sensitivity.REGULATORY),
    ScopeCategory("reports", "Reports"),
    ScopeCategory("quality", "Quality", read_only=True),
    ScopeCategory("finance", "Finance", Sensitivity.FINANCIAL),
    ScopeCategory("crm", "CRM", Sensitivity.PII),
    ScopeCategory("tasks", "Tasks"),
    ScopeCategory("activities", "Activities", read_only=True),
    ScopeCategory("webhooks", "Webhooks", Sensitivity.ADMINISTRATIVE),
)
"""The default categories; a configuration may define others instead."""


class ScopeCatalogue:
    """The configured categories; parses and checks scopes."""

    def __init__(self, categories: Iterable[ScopeCategory] = DEFAULT_CATEGORIES) -> None:
        """
        Index *categories* by name.

        Raises:
            ScopeError: a category is defined twice.
        """
        self.categories: Mapping[str, ScopeCategory] = _by_name(categories)

    def parse(self, text: str) -> Scope:
        """
        Parse `category:read` or `category:write`.

        >>> str(ScopeCatalogue().parse("orders:read"))
        'orders:read'

        Raises:
            ScopeError: malformed, an unknown category, or write on a read-only category.
        """
        name, colon, access = text.partition(":")
        if not colon or access not in ("read", "write"):
            raise ScopeError(f"scope {text!r} must be 'category:read' or 'category:write'")
        category = self.categories.get(name)
        if category is None:
            known = ", ".join(self.categories)
            raise ScopeError(f"scope {text!r} names the unknown category {name!r}; known: {known}")
        if category.read_only and access == "write":
            raise ScopeError(f"scope {text!r} is not allowed: category {category.title} is read-only")
        return Scope(name, access)

    def did_you_mean(self, text: str) -> str:
        """
        Return a suggestion to append to the error of `parse`; '' = no similar scope.

        It is separate because decisions also call `parse`, and comparing names is slow.
        """
        known = (
            f"{category.name}:{access}"
            for category in self.categories.values()
            for access in (("read",) if category.read_only else ("read", "write"))
        )
        return did_you_mean(text, known)

    def parse_required(self, text: str) -> Scope | None:
        """
        Parse the scope that a route requires; None = 'none', any active integration may call.

        Raises:
            ScopeError: *text* is neither a scope nor 'none'.
        """
        if text == NO_SCOPE:
            return None
        try:
            return self.parse(text)
        except ScopeError as error:
            raise ScopeError(f"{error}{'' if ':' in text else f', or {NO_SCOPE!r}'}") from None


def _by_name(categories: Iterable[ScopeCategory]) -> dict[str, ScopeCategory]:
    index: dict[str, ScopeCategory] = {}
    for category in categories:
        if category.name in index:
            raise ScopeError(f"category {category.name!r} is defined twice")
        index[category.name] = category
    return index
